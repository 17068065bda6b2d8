"""The data sets of the experiments, from the files as downloaded to indices and mean images.

Out: OUTPUT/data/NAME/{train.parquet, val.parquet, mean.npy}; what is there already is left alone.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, first_line

_TOOLS = Path(__file__).resolve().parent.parent
_MNIST = {
    part: [f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for part in ("train", "t10k")
}
_ILSVRC = {
    "--train": "ILSVRC2012_img_train.tar",
    "--val": "ILSVRC2012_img_val.tar",
    "--devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
# What the downloads hold: images to train on, and to test on.
SIZES = {"mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "ilsvrc": (1_281_167, 50_000)}
_SIDE = {"mnist": ("28", "1"), "cifar10": ("32", "3")}  # pixels and channels of mean images
TRAIN, VAL, MEAN = "train.parquet", "val.parquet", "mean.npy"


def options(name: str, folder: Path) -> list[str]:
    """Options of pipeline/finetune.py for the data in a folder."""
    words = ["--data.train", str(folder / TRAIN), "--data.val", str(folder / VAL)]
    return words + (["--data.mean", str(folder / MEAN)] if name in _SIDE else [])


def prepare(name: str, downloads: Path | None, folder: Path) -> None:
    """Make the indices and the mean image of a data set, unless they are there.

    Args:
        name: of the data set.
        downloads: folder with the files as downloaded, in it or anywhere below it.
        folder: to write to.

    Raises:
        UserError: files are missing, or a tool failed.
    """
    wanted = [TRAIN, VAL, MEAN][: 3 if name in _SIDE else 2]
    if all((folder / file).exists() for file in wanted):
        return
    if downloads is None:
        raise UserError(
            f"{folder} has no {name} yet; give --data DIR, the folder of the downloads: "
            + ", ".join(_files(name))
        )
    found = {file: _find(downloads, file) for file in _files(name)}
    folder.mkdir(parents=True, exist_ok=True)
    if name == "ilsvrc":
        words = [word for option, file in _ILSVRC.items() for word in (option, found[file])]
        _run("index.py", "ilsvrc", *words, "--partial", "--out", folder)
        return
    if name == "mnist":
        for part, target in (("train", "train.tar"), ("t10k", "val.tar")):
            _run("pack.py", "idx", *(found[f] for f in _MNIST[part]), "--out", folder / target)
    else:
        _run("pack.py", "cifar10", found["data_batch_1"].parent, "--out", folder)
    for part in ("train", "val"):
        _run("index.py", "tar", folder / f"{part}.tar", "--out", folder / f"{part}.parquet")
    side, channels = _SIDE[name]
    shape = ("--crop", side, "--resize", side, "--channels", channels)
    _run("index.py", "mean", folder / TRAIN, "--out", folder / MEAN, *shape)


def _files(name: str) -> list[str]:
    if name == "mnist":
        return [file for files in _MNIST.values() for file in files]
    if name == "ilsvrc":
        return list(_ILSVRC.values())
    return [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def _find(folder: Path, file: str) -> Path:
    """The file, in a folder or below it.

    Raises:
        UserError: it is not there.
    """
    found = sorted(folder.rglob(file))
    if not found:
        raise UserError(f"--data: there is no {file} in {folder} or below it")
    return found[0].resolve()


def _run(tool: str, *words: object) -> None:
    command = [sys.executable, str(_TOOLS / tool), *map(str, words)]
    if subprocess.run(command).returncode != 0:
        raise UserError(f"tools/{tool} failed, see above")


def sizes(folder: Path) -> tuple[int, int]:
    """Images to train on and to test on.

    Raises:
        UserError: an index is damaged.
    """
    return _size(folder / TRAIN), _size(folder / VAL)


def _size(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read as an index ({first_line(error)}); remove it: it is made again"
        ) from None


def is_cut(name: str, sizes: tuple[int, int]) -> bool:
    """Whether the data are fewer images than the data set has."""
    return sizes != SIZES[name]
