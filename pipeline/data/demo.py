"""The embedded default: real MNIST digits, read through the same path as any archive.

6,000 digits to train on (every tenth of MNIST's training set) and 2,000 to test on (every fifth
of its test set) ship with the package as IDX files. On first use they become tars of PNGs with
their indices in a cache folder.
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
_VERSION = "mnist-digits-1"  # part of the folder's name: change it when the digits change


def cache_folder() -> Path:
    """Where generated data lies: $DEEPDEFENSE_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deep-defense"
    return Path(os.environ.get("DEEPDEFENSE_CACHE", default))


def prepare() -> dict[str, Path]:
    """Make the digits' archives and indices if they are not there; paths by train and val.

    Ranks may call it together: each works in a folder of its own, and the first to finish wins.
    """
    folder = cache_folder() / _VERSION
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{_VERSION}-", dir=folder.parent))
        except OSError as error:
            raise UserError(
                f"cannot write the cache folder {folder.parent}: {error}; "
                "name another in the environment variable DEEPDEFENSE_CACHE"
            ) from None
        try:
            for part in ("train", "val"):
                _make(work, folder, part)
            work.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # another rank has not won: a full disk
                raise UserError(f"cannot write {work}: {error}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return {part: folder / f"{part}.parquet" for part in ("train", "val")}


def _make(work: Path, folder: Path, part: str) -> None:
    images = read_idx(_DIGITS / f"{part}-images.idx3-ubyte.gz")
    labels = read_idx(_DIGITS / f"{part}-labels.idx1-ubyte.gz")
    archive = work / f"{part}.tar"
    write_tar(archive, images, labels.tolist(), _CLASSES)
    found, classes = scan.scan_tar(archive)
    index.write(work / f"{part}.parquet", found.table(), folder, classes, {archive.name: archive})
