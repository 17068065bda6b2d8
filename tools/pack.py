"""Convert data sets that are arrays into tars of PNGs, for tools/index.py tar.

python tools/pack.py idx train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz --out train.tar
python tools/pack.py cifar10 cifar-10-batches-py --out DIR    # DIR/train.tar, DIR/val.tar
"""

import argparse
import shlex
from pathlib import Path

import numpy as np
from rich.progress import track

from pipeline.config import arguments
from pipeline.data import convert
from pipeline.errors import UserError, exit_on_user_error
from pipeline.runtime.files import check_writable, refuse_input, writable

CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def idx(options: argparse.Namespace) -> None:
    """Convert IDX files, such as those of MNIST."""
    check_writable(options.out)
    refuse_input(options.out, (options.images, options.labels))
    images, labels = convert.read_idx(options.images), convert.read_idx(options.labels)
    are_images = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not are_images or labels.shape != images.shape[:1]:
        raise UserError(
            f"{options.images} has shape {images.shape} and {options.labels} {labels.shape}: "
            "expected (N, height, width) or (N, height, width, 3), and (N,)"
        )
    if images.size == 0:
        raise UserError(f"{options.images} contains no images: its shape is {images.shape}")
    largest = int(labels.max())  # names of one length are sorted as the numbers are
    names = [str(k).zfill(len(str(largest))) for k in range(largest + 1)]
    write(options.out, images, labels, names)


def cifar10(options: argparse.Namespace) -> None:
    """Convert the Python version of CIFAR-10."""
    parts = {"train": [f"data_batch_{k}" for k in range(1, 6)], "val": ["test_batch"]}
    inputs = [options.folder / name for names in parts.values() for name in names]
    for part in parts:
        check_writable(options.out / f"{part}.tar")
        refuse_input(options.out / f"{part}.tar", inputs)
    for part, names in parts.items():
        batches = [convert.read_cifar10(options.folder / name) for name in names]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        write(options.out / f"{part}.tar", images, labels, CIFAR10_CLASSES)


def write(path: Path, images: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    """Write one tar and print its name."""
    with_progress = track(images, f"{path}", total=len(images), transient=True)
    with writable(path):
        count = convert.write_tar(path, with_progress, labels.tolist(), classes)
    print(f"{path}: {count:,} images; next: python tools/index.py tar {shlex.quote(str(path))}")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(required=True, metavar="idx | cifar10")
    idx_parser = commands.add_parser("idx", help=idx.__doc__)
    idx_parser.add_argument("images", type=Path, help="IDX file of images, plain or .gz")
    idx_parser.add_argument("labels", type=Path, help="IDX file of labels, plain or .gz")
    idx_parser.add_argument("--out", type=Path, required=True, help="tar to write")
    idx_parser.set_defaults(run=idx)
    cifar10_parser = commands.add_parser("cifar10", help=cifar10.__doc__)
    cifar10_parser.add_argument("folder", type=Path, help="cifar-10-batches-py, unpacked")
    cifar10_parser.add_argument(
        "--out", type=Path, required=True, help="folder for train.tar and val.tar"
    )
    cifar10_parser.set_defaults(run=cifar10)
    return top


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        args.run(args)
