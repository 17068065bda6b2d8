r"""Index images for --data.train and --data.val. Images are read from their archives or folders.

    python tools/index.py ilsvrc --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar \
        --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR    # DIR/train.parquet, DIR/val.parquet
    python tools/index.py folder ROOT --out FILE.parquet   # ROOT/class/image, as ImageFolder
    python tools/index.py tar ARCHIVE --out FILE.parquet   # class/image members
    python tools/index.py folder ROOT --classes TRAIN.parquet --out VAL.parquet
    python tools/index.py join A.parquet B.parquet --out BOTH.parquet
    python tools/index.py mean TRAIN.parquet --out mean.npy --crop 28 --resize 28 --channels 1

Only the headers of images are read, some thousand images per second. Members that are not images
are listed and left out. A class without images keeps its label. --classes states the classes and
their order, for a part of a data set that lacks some classes.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.config import DataConfig, arguments, checks
from pipeline.data import index, scan
from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes
from pipeline.data.new_index import NewIndex
from pipeline.data.scan import Scan
from pipeline.errors import UserError, exit_on_user_error, first_few
from pipeline.runtime.files import atomic_write, check_writable, writable

_CROP_RANGE = checks.options(DataConfig)["crop_size"].range
assert _CROP_RANGE is not None
SIDE = arguments.Number(int, _CROP_RANGE)
_BATCH_VALUES = 2**28  # numbers in a batch of images: 1 GiB
console = Console(stderr=True, soft_wrap=True)


@contextmanager
def progress_bar(name: str, total: int, in_bytes: bool) -> Iterator[scan.ReportProgress]:
    """A progress bar with the time left; yields a function to call with the amount done so far."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn(name), BarColumn(), amount, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)


def ilsvrc(options: argparse.Namespace) -> None:
    """Index ILSVRC-2012's archives as downloaded."""
    if options.train is None and options.val is None:
        raise UserError("ilsvrc: give --train ARCHIVE, --val ARCHIVE or both")
    archives = {"train": options.train, "val": options.val}
    archives = {part: archive for part, archive in archives.items() if archive is not None}
    for part in archives:
        check_out(options.out / f"{part}.parquet")
    kit = scan.read_development_kit(options.devkit)
    labels = {wnid: label for label, wnid in enumerate(kit.wnids)}
    scans: dict[str, Scan] = {}
    for part, archive in archives.items():
        with progress_bar(part, scan.file_size(archive), in_bytes=True) as progress:
            if part == "train":
                scans[part] = scan.scan_ilsvrc_train(archive, labels, progress)
            else:
                scans[part] = scan.scan_ilsvrc_val(archive, kit.validation_labels, progress)
    indices = {
        part: NewIndex(options.out / f"{part}.parquet", rows, kit.classes, archives[part])
        for part, rows in scans.items()
    }
    for part, new_index in indices.items():
        finish_scan(new_index, options.verify)
        expected = scan.ILSVRC_COUNTS[part]
        if len(new_index.rows) != expected and not options.partial:
            raise UserError(
                f"{part}: {len(new_index.rows):,} images, ILSVRC-2012 has {expected:,}; "
                "is the download complete? --partial accepts other counts"
            )
    for new_index in indices.values():
        write(new_index)


def folder(options: argparse.Namespace) -> None:
    """Index an ImageFolder tree."""
    root = options.root.resolve()
    out = options.out or Path(f"{root.name}.parquet")
    check_out(out)
    total = len(scan.list_folder(root)[0]) if root.is_dir() else 0
    with progress_bar("folder", total, in_bytes=False) as progress:
        rows, classes = scan.scan_folder(root, progress, classes_option(options))
    new_index = NewIndex(out, rows, classes, root)
    finish_scan(new_index, options.verify)
    write(new_index)


def tar(options: argparse.Namespace) -> None:
    """Index a tar with one folder for each class."""
    if len(options.archive) > 1:
        raise UserError(
            "tar: index one archive at a time, each with the same --classes, then: "
            "tools/index.py join A.parquet B.parquet --out BOTH.parquet"
        )
    archive = options.archive[0].resolve()
    out = options.out or Path(f"{archive.stem}.parquet")
    check_out(out)
    with progress_bar("tar", scan.file_size(archive), in_bytes=True) as progress:
        rows, classes = scan.scan_tar(archive, progress, classes_option(options))
    new_index = NewIndex(out, rows, classes, archive)
    finish_scan(new_index, options.verify)
    write(new_index)


def classes_option(options: argparse.Namespace) -> Callable[[list[str]], Classes] | None:
    """A function from the names of the class folders to the classes of --classes."""
    if options.classes is None:
        return None
    return lambda folders: read_class_list(options.classes, folders)


def check_out(path: Path) -> None:
    """Refuse an output that cannot be written, before the scan."""
    check_writable(path)
    index.refuse_other_file(path)


def join(options: argparse.Namespace) -> None:
    """Join several indices, for example of images and of adversarial examples."""
    with writable(options.out):
        number = index.join(options.indices, options.out)
    print(f"{options.out}: {number:,} images")


def preprocessing(options: argparse.Namespace) -> DataConfig:
    """Options for centre crops without normalisation; images that do not decode are left out."""
    return DataConfig(
        crop_size=options.crop,
        resize_size=options.resize,
        channels=options.channels,
        mean=[0.0] * options.channels,
        std=[1.0] * options.channels,
        on_error="skip",
    )


def mean(options: argparse.Namespace) -> None:
    """Compute the mean of an index's centre crops for --data.mean, with pixels in [0, 1]."""
    import torch  # torch and DALI take seconds to import, and other commands do not need them

    from pipeline.data import source
    from pipeline.data.batches import evaluation_specs
    from pipeline.data.loader import Loader

    if options.out.suffix != ".npy":
        raise UserError(f"--out {options.out}: a mean image is a .npy file; name it so")
    check_writable(options.out)
    if options.resize < options.crop:
        raise UserError(f"--resize {options.resize} must be at least --crop, {options.crop}")
    images = index.read(str(options.index), options.root, option="index")
    if images.is_array.any():
        raise UserError(f"{options.index} contains arrays; a mean image is made of images only")
    channels = options.channels
    data = preprocessing(options)
    total, done = torch.zeros((), dtype=torch.float64), 0
    size = min(250, max(1, _BATCH_VALUES // (channels * options.crop**2)))
    specs = evaluation_specs(images, np.arange(len(images)), data, size)
    loader = Loader(images, specs, data, torch.device("cpu"), size, source.decoding_threads(data))
    with progress_bar("mean", len(images), in_bytes=False) as progress:
        for batch in loader:
            total = total + batch.images.double().sum(dim=0)
            done += len(batch.rows)
            progress(done)
    with writable(options.out), atomic_write(options.out) as partial, partial.open("wb") as file:
        np.save(file, (total / done).float().numpy())
    print(
        f"{options.out}: the mean of {done:,} images, {channels} x {options.crop} x {options.crop}"
    )


def finish_scan(new_index: NewIndex, verify: bool) -> None:
    """Decode the images if ``verify`` is set, and list the members that are left out.

    Raises:
        UserError: no image is left.
    """
    if verify and len(new_index.rows):
        with progress_bar("verify", len(new_index.rows), in_bytes=False) as progress:
            new_index.verify(progress)
    for line in new_index.rejected_lines():
        say(line)
    if len(new_index.rows) == 0:
        raise UserError(f"{new_index.source} contains no images in class folders")
    empty = new_index.rows.empty_classes(new_index.classes)
    if empty:
        have = "class has" if len(empty) == 1 else "classes have"
        say(f"warning: {len(empty):,} {have} no images: {first_few(empty)}")


def say(line: str) -> None:
    """Print a line above the progress bar."""
    console.print(line, highlight=False, markup=False)


def write(new_index: NewIndex) -> None:
    """Write one index and print a summary of it."""
    with writable(new_index.path):
        new_index.write()
    print(new_index.summary())


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(required=True, metavar="ilsvrc | folder | tar | join | mean")
    ilsvrc_parser = commands.add_parser("ilsvrc", help=ilsvrc.__doc__)
    ilsvrc_parser.add_argument(
        "--train", type=Path, help="ILSVRC2012_img_train.tar, a tar of class tars"
    )
    ilsvrc_parser.add_argument("--val", type=Path, help="ILSVRC2012_img_val.tar, a flat tar")
    ilsvrc_parser.add_argument(
        "--devkit", type=Path, required=True, help="ILSVRC2012_devkit_t12.tar.gz: the classes"
    )
    ilsvrc_parser.add_argument("--out", type=Path, required=True, help="folder for the two indices")
    ilsvrc_parser.add_argument(
        "--partial", action="store_true", help="accept other numbers of images than ILSVRC's"
    )
    ilsvrc_parser.set_defaults(run=ilsvrc)
    folder_parser = commands.add_parser("folder", help=folder.__doc__)
    folder_parser.add_argument("root", type=Path, help="folder with one folder for each class")
    folder_parser.add_argument(
        "--out", type=Path, help="index to write (default: ROOT's name .parquet)"
    )
    folder_parser.set_defaults(run=folder)
    tar_parser = commands.add_parser("tar", help=tar.__doc__)
    tar_parser.add_argument(
        "archive", type=Path, nargs="+", help="tar with one folder for each class, not compressed"
    )
    tar_parser.add_argument(
        "--out", type=Path, help="index to write (default: the tar's name .parquet)"
    )
    tar_parser.set_defaults(run=tar)
    for name in ("folder", "tar"):
        commands.choices[name].add_argument(
            "--classes",
            type=Path,
            metavar="FILE",
            help="the classes and their order: an index, or a text file with a class id on each "
            "line (and, after a tab or space, a name), such as LOC_synset_mapping.txt. To index "
            "evaluation images, use the index of the training images. Default: the folders, "
            "sorted",
        )
    for command in commands.choices.values():
        command.add_argument(
            "--verify",
            action="store_true",
            help="decode every image with DALI, as training does, instead of reading only its "
            "header (slow)",
        )
    join_parser = commands.add_parser("join", help=join.__doc__)
    join_parser.add_argument("indices", type=Path, nargs="+", help="indices to join, in this order")
    join_parser.add_argument("--out", type=Path, required=True, help="index to write")
    join_parser.set_defaults(run=join)
    mean_parser = commands.add_parser("mean", help=mean.__doc__)
    mean_parser.add_argument("index", type=Path, help="index of the images to train on")
    mean_parser.add_argument("--out", type=Path, required=True, help=".npy file to write")
    mean_parser.add_argument(
        "--root", help="folder of the archives or images, if they have been moved"
    )
    mean_parser.add_argument(
        "--crop", type=SIDE, default=224, help="side of the crop, in pixels (%(default)s)"
    )
    mean_parser.add_argument(
        "--resize",
        type=SIDE,
        default=256,
        help="length of the shorter side, in pixels (%(default)s)",
    )
    mean_parser.add_argument(
        "--channels", type=int, choices=(1, 3), default=3, help="1: grey (%(default)s)"
    )
    mean_parser.set_defaults(run=mean)
    return top


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        args.run(args)
