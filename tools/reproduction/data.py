"""The data sets of the experiments: indices and mean images, made from the downloaded files.

Out: train.parquet, val.parquet, mean.npy in OUTPUT/data; existing files are kept.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.ilsvrc import ILSVRC_COUNTS
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
# Number of images in the downloads: to train on, and to test on.
SIZES = {
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "ilsvrc": (ILSVRC_COUNTS["train"], ILSVRC_COUNTS["val"]),
}
_MEAN_IMAGE_SHAPES = {"mnist": ("28", "1"), "cifar10": ("32", "3")}  # side in pixels, channels
TRAIN, VAL, MEAN = "train.parquet", "val.parquet", "mean.npy"


def options(name: str, folder: Path) -> list[str]:
    """Options of pipeline/finetune.py for the data in a folder."""
    argv = ["--data.train", str(folder / TRAIN), "--data.val", str(folder / VAL)]
    if name in _MEAN_IMAGE_SHAPES:
        argv += ["--data.mean", str(folder / MEAN)]
    return argv


def prepare(name: str, downloads: Path | None, folder: Path) -> None:
    """Make the indices and the mean image of a data set, unless they exist.

    Args:
        name: mnist, cifar10 or ilsvrc.
        downloads: folder that contains the downloaded files, at any depth.
        folder: folder to write to.

    Raises:
        UserError: files are missing, or a tool failed.
    """
    has_mean = name in _MEAN_IMAGE_SHAPES
    products = [TRAIN, VAL, MEAN] if has_mean else [TRAIN, VAL]
    if all((folder / file).exists() for file in products):
        return
    if downloads is None:
        raise UserError(
            f"{folder} has no {name} yet; give --data DIR, the folder of the downloads: "
            + ", ".join(_files(name))
        )
    paths = {file: _find(downloads, file) for file in _files(name)}
    folder.mkdir(parents=True, exist_ok=True)
    if name == "ilsvrc":
        argv: list[object] = []
        for option, file in _ILSVRC.items():
            argv += [option, paths[file]]
        _run("index.py", "ilsvrc", *argv, "--partial", "--out", folder)
        return
    if name == "mnist":
        for part, target in (("train", "train.tar"), ("t10k", "val.tar")):
            _run(
                "pack.py", "idx", *(paths[file] for file in _MNIST[part]), "--out", folder / target
            )
    else:
        _run("pack.py", "cifar10", paths["data_batch_1"].parent, "--out", folder)
    for part in ("train", "val"):
        _run("index.py", "tar", folder / f"{part}.tar", "--out", folder / f"{part}.parquet")
    side, channels = _MEAN_IMAGE_SHAPES[name]
    shape = ("--crop", side, "--resize", side, "--channels", channels)
    _run("index.py", "mean", folder / TRAIN, "--out", folder / MEAN, *shape)


def _files(name: str) -> list[str]:
    """The downloaded files of a data set."""
    if name == "mnist":
        return [file for files in _MNIST.values() for file in files]
    if name == "ilsvrc":
        return list(_ILSVRC.values())
    return [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def _find(folder: Path, file: str) -> Path:
    """The first file of this name in a folder or below it.

    Raises:
        UserError: there is none.
    """
    paths = sorted(folder.rglob(file))
    if not paths:
        raise UserError(f"--data: there is no {file} in {folder} or below it")
    return paths[0].resolve()


def _run(tool: str, *argv: object) -> None:
    """Run one of the tools.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, str(_TOOLS / tool), *(str(argument) for argument in argv)]
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
            f"{path} cannot be read as an index ({first_line(error)}); remove it, and the next "
            "run makes it again"
        ) from None


def is_cut(name: str, sizes: tuple[int, int]) -> bool:
    """Whether the number of images differs from that of the whole data set."""
    return sizes != SIZES[name]
