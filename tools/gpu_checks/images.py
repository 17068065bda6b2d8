"""Generated JPEGs that resemble photos, and their index."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from gpu_checks.check import Setup
from pipeline.data import index, scan
from pipeline.data.index import Index
from pipeline.data.new_index import NewIndex

NUM_CLASSES = 10
NUM_DIFFERENT = 150  # photos; others are copies
SIZES = ((500, 375), (375, 500), (640, 480), (333, 500), (300, 225))  # width, height
# Subsampling 2 is 4:2:0: one colour value for four pixels, as in nearly all photos.
BASELINE: dict[str, Any] = {"quality": 90, "subsampling": 2}
# PIL's mode and options of the kinds of JPEG among ILSVRC's images.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", BASELINE),
    "4:4:4": ("RGB", {"quality": 90, "subsampling": 0}),
    "progressive": ("RGB", BASELINE | {"progressive": True}),
    "grey": ("L", {"quality": 90}),
    "CMYK": ("CMYK", {"quality": 90}),
}


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth random fields of two scales, objects with sharp edges, and noise."""
    rng = np.random.default_rng(seed)
    coarse, fine = (_field(rng, cells, size) for cells in (5, 24))
    image = Image.blend(coarse, fine, 0.3)
    draw, extent = ImageDraw.Draw(image), min(size)
    for _ in range(4):
        corner = rng.integers(0, extent, 2)
        box = [*corner.tolist(), *(corner + rng.integers(extent // 8, extent // 2, 2)).tolist()]
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.integers(2) else draw.rectangle)(box, fill=colour)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _field(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    values = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def photos(setup: Setup) -> Index:
    """The index of the photos, all of the most frequent kind; they are written at the first call.

    To save time a photo is written several times: what it costs to decode stays the same.
    """
    folder = setup.folder / "photos"
    if not index_path(folder).exists():
        for number in range(setup.size.num_photos):
            path = folder / f"class{number % NUM_CLASSES}" / f"{number:05d}.jpg"
            if number < NUM_DIFFERENT:
                size = SIZES[number % len(SIZES)]
                write_jpeg(path, photo(size, number), "RGB", BASELINE)
            else:  # the number of classes divides that of the photos: the class is the same
                shutil.copy(path.with_name(f"{number % NUM_DIFFERENT:05d}.jpg"), path)
    return index_of(folder)


def photos_of_kind(setup: Setup, kind: str) -> Index:
    """The index of a few photos of one of `KINDS`."""
    mode, options = KINDS[kind]
    folder = setup.folder / "kinds" / kind.replace(":", "")
    if not index_path(folder).exists():
        for number, size in enumerate(SIZES):
            name = f"class{number % 2}/{number}.jpg"
            write_jpeg(folder / name, photo(size, number), mode, options)
    return index_of(folder)


def write_jpeg(path: Path, image: Image.Image, mode: str, options: dict[str, Any]) -> None:
    """Write a picture as a JPEG; folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, "JPEG", **options)


def index_path(folder: Path) -> Path:
    """Where the index of a folder of class folders is."""
    return folder.with_suffix(".parquet")


def index_of(folder: Path) -> Index:
    """The index of a folder of class folders, as tools/index.py makes it, at the first call."""
    path = index_path(folder)
    if not path.exists():
        rows, classes = scan.scan_folder(folder)
        NewIndex(path, rows, classes, folder).write()
    return index.read(str(path))
