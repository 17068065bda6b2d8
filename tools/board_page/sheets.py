"""Small pictures of contact sheets, for the board.

In: the folder of an evaluation. Out: a JPEG file, if the folder has a picture or examples.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError, first_line
from pipeline.evaluation import contact_sheet
from pipeline.evaluation.manifest import read_manifest
from pipeline.runtime.files import atomic_write

# Pictures that users draw with tools/report.py figures sheet.
PICTURES = ("sheet.png", "sheet.jpg", "sheet.jpeg", "contact_sheet.png", "contact_sheet.jpg")
_WIDTH = 480  # pixels
_QUALITY = 75


def write_sheet(folder: Path, path: Path) -> bool:
    """Write a small copy of an evaluation's contact sheet.

    Args:
        folder: the evaluation. A picture in it is copied; otherwise its stored examples are drawn.
        path: JPEG file to write.

    Returns:
        Whether there was a picture or an example.

    Raises:
        UserError: the picture or an example cannot be read.
    """
    try:
        image = _picture(folder) or _drawn(folder)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{folder}: no contact sheet ({first_line(error)})") from None
    if image is None:
        return False
    image.thumbnail((_WIDTH, 10 * _WIDTH))
    with atomic_write(path) as partial:
        image.save(partial, "JPEG", quality=_QUALITY, optimize=True)
    return True


def _picture(folder: Path) -> Image.Image | None:
    for name in PICTURES:
        if (folder / name).is_file():
            with Image.open(folder / name) as image:
                return image.convert("RGB")
    return None


def _drawn(folder: Path) -> Image.Image | None:
    """The sheet of the examples in results/; None without any."""
    manifest = next(iter(sorted((folder / "results").glob("*/manifest.json"))), None)
    if manifest is None:
        return None
    figure = contact_sheet.draw_stored(folder, read_manifest(manifest))
    if figure is None:
        return None
    figure.set_dpi(_WIDTH / figure.get_figwidth())
    figure.canvas.draw()
    pixels = figure.canvas.buffer_rgba()  # pyright: ignore[reportAttributeAccessIssue]; of Agg
    return Image.fromarray(np.asarray(pixels)).convert("RGB")
