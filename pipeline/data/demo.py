"""The default data: MNIST digits in the package, which are read like any other archive.

The package contains 6,000 digits for training (every tenth of MNIST's training set) and 2,000 for
testing (every fifth of its test set) as IDX files. On first use they are written as tars of PNGs
with indices to a cache folder.
"""

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.data import index, scan
from pipeline.data.convert import read_idx, write_tar
from pipeline.errors import UserError

NAME = "demo"
_DIGITS = Path(__file__).parent / "digits"
_CLASSES = [str(digit) for digit in range(10)]
_VERSION = "mnist-digits-1"  # part of the folder's name; to be changed with the digits


def cache_folder() -> Path:
    """The folder of generated data: $DEEPDEFENSE_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deep-defense"
    return Path(os.environ.get("DEEPDEFENSE_CACHE", default))


def prepare() -> dict[str, Path]:
    """The paths of the digits' indices, ``train`` and ``val``, which are written if missing.

    Ranks may call it at the same time: each writes a temporary folder, and the first to finish
    renames its folder.
    """
    folder = cache_folder() / _VERSION
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{_VERSION}-", dir=folder.parent))
        except OSError as error:
            raise UserError(
                f"cannot write the cache folder {folder.parent}: {error}; "
                "set another with the environment variable DEEPDEFENSE_CACHE"
            ) from None
        try:
            for part in ("train", "val"):
                _make(work, folder, part)
            work.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # not because another rank was first; the disk may be full
                raise UserError(f"cannot write {work}: {error}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return {part: folder / f"{part}.parquet" for part in ("train", "val")}


def _make(work: Path, folder: Path, part: str) -> None:
    images = read_idx(_DIGITS / f"{part}-images.idx3-ubyte.gz")
    labels = read_idx(_DIGITS / f"{part}-labels.idx1-ubyte.gz")
    archive = work / f"{part}.tar"
    write_tar(archive, images, labels.tolist(), _CLASSES)
    rows, classes = scan.scan_tar(archive)
    index.write(work / f"{part}.parquet", rows.table(), folder, classes, {archive.name: archive})
