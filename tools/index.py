r"""Index images where they are, for --data.train and --data.val; nothing is unpacked.

    python tools/index.py ilsvrc --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar \
        --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR    # DIR/train.parquet, DIR/val.parquet
    python tools/index.py folder ROOT --out FILE.parquet   # ROOT/class/image, as ImageFolder
    python tools/index.py tar ARCHIVE --out FILE.parquet   # class/image members
    python tools/index.py join A.parquet B.parquet --out BOTH.parquet
    python tools/index.py mean TRAIN.parquet --out mean.npy --crop 28 --resize 28 --channels 1

One pass over the headers: some thousand images a second. Members that are no decodable images are
named and left out.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
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

from pipeline import arguments
from pipeline.atomic import replacing
from pipeline.config import DataConfig, rule
from pipeline.data import index, scan
from pipeline.data.scan import Scan
from pipeline.errors import UserError, guarded

ILSVRC_COUNTS = {"train": 1_281_167, "val": 50_000}
SIDE = arguments.Number(int, rule.options(DataConfig)["crop"].range)
_BATCH_VALUES = 2**28  # of a batch's images: 1 GiB
console = Console(stderr=True, soft_wrap=True)


@contextmanager
def progress_bar(name: str, total: int, in_bytes: bool) -> Iterator[scan.Progress]:
    """A bar with time left, as a callable that takes what is done so far."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn(name), BarColumn(), amount, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)


def ilsvrc(options: argparse.Namespace) -> None:
    """ILSVRC-2012's archives as downloaded."""
    if options.train is None and options.val is None:
        raise UserError("ilsvrc: give --train ARCHIVE, --val ARCHIVE or both")
    kit = scan.read_development_kit(options.devkit)
    found: dict[str, tuple[Path, Scan]] = {}
    if options.train is not None:
        labels = {wnid: label for label, wnid in enumerate(kit.wnids)}
        with progress_bar("train", size(options.train), in_bytes=True) as progress:
            rows = scan.scan_ilsvrc_train(options.train, labels, options.verify, progress)
        found["train"] = options.train, rows
    if options.val is not None:
        with progress_bar("val", size(options.val), in_bytes=True) as progress:
            labels_in_order = kit.validation_labels
            rows = scan.scan_ilsvrc_val(options.val, labels_in_order, options.verify, progress)
        found["val"] = options.val, rows
    for part, (_, rows) in found.items():
        name_rejected(rows)
        if len(rows) != ILSVRC_COUNTS[part] and not options.partial:
            raise UserError(
                f"{part}: {len(rows):,} images, ILSVRC-2012 has {ILSVRC_COUNTS[part]:,}; "
                "is the download complete? --partial accepts other counts"
            )
    for part, (archive, rows) in found.items():
        write(options.out / f"{part}.parquet", rows, archive.resolve().parent, kit.names, archive)


def folder(options: argparse.Namespace) -> None:
    """An ImageFolder tree."""
    root = options.root.resolve()
    total = sum(1 for path in root.rglob("*") if path.is_file()) if root.is_dir() else 0
    with progress_bar("folder", total, in_bytes=False) as progress:
        rows, classes = scan.scan_folder(root, options.verify, progress)
    name_rejected(rows)
    write(options.out or Path(f"{root.name}.parquet"), rows, root, classes, None)


def tar(options: argparse.Namespace) -> None:
    """A tar with one folder a class."""
    archive = options.archive.resolve()
    with progress_bar("tar", size(archive), in_bytes=True) as progress:
        rows, classes = scan.scan_tar(archive, options.verify, progress)
    name_rejected(rows)
    write(options.out or Path(f"{archive.stem}.parquet"), rows, archive.parent, classes, archive)


def join(options: argparse.Namespace) -> None:
    """Several indices as one, for example of images and of adversarial examples."""
    number = index.join(options.indices, options.out)
    print(f"{options.out}: {number:,} images")


def mean(options: argparse.Namespace) -> None:
    """The mean image of an index, for --data.mean; cropped as in evaluation, pixels in [0, 1]."""
    import torch  # with DALI, seconds that the other commands need not wait for

    from pipeline import setup
    from pipeline.data.batches import evaluation_specs
    from pipeline.data.loader import Loader, UndecodableImages

    if options.resize < options.crop:
        raise UserError(f"--resize {options.resize} must be at least --crop, {options.crop}")
    found = index.read(str(options.index), options.root, option="index")
    if found.arrays.any():
        raise UserError(f"{options.index} holds arrays, which have no mean taken from them")
    channels = options.channels
    none = {"mean": [0.0] * channels, "std": [1.0] * channels}
    data = DataConfig(crop=options.crop, resize=options.resize, channels=channels, **none)
    total, done = 0.0, 0
    size = min(250, max(1, _BATCH_VALUES // (channels * options.crop**2)))
    specs = evaluation_specs(found, np.arange(len(found)), data, size)
    loader = Loader(found, specs, data, torch.device("cpu"), size, setup.decoding_threads(data))
    with progress_bar("mean", len(found), in_bytes=False) as progress:
        try:
            for batch in loader:
                total = total + batch.images.double().sum(dim=0)
                done += len(batch.rows)
                progress(done)
        except UndecodableImages as error:  # its remedies are those of a run
            what = str(error).partition("; ")[0]
            raise UserError(f"{what}; repair them, or leave them out of the index") from None
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as partial, partial.open("wb") as file:
            np.save(file, (total / done).float().numpy())
    except OSError as error:
        raise UserError(f"cannot write {options.out}: {error.strerror}; give another") from None
    print(
        f"{options.out}: the mean of {done:,} images, {channels} x {options.crop} x {options.crop}"
    )


def size(path: Path) -> int:
    """Size of a file that must be there."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    return path.stat().st_size


def name_rejected(rows: Scan) -> None:
    """Name every member that is no decodable image."""
    for member, why in rows.rejected:
        console.print(f"left out {member}: {why}", highlight=False, markup=False)


def write(path: Path, rows: Scan, root: Path, classes: list[str], archive: Path | None) -> None:
    """Write one index and say what is in it."""
    if len(rows) == 0:
        raise UserError(f"{root if archive is None else archive} holds no images in class folders")
    archives = {} if archive is None else {archive.name: archive}
    try:
        index.write(path, rows.table(), root, classes, archives)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out") from None
    kinds = Counter(zip(rows.columns["format"], rows.columns["mode"], strict=True))
    shown = ", ".join(f"{count:,} {kind} {mode}" for (kind, mode), count in kinds.most_common())
    print(f"{path}: {len(rows):,} images of {len(classes):,} classes ({shown})")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(required=True, metavar="ilsvrc | folder | tar | join | mean")
    one = commands.add_parser("ilsvrc", help=ilsvrc.__doc__)
    one.add_argument("--train", type=Path, help="ILSVRC2012_img_train.tar, a tar of class tars")
    one.add_argument("--val", type=Path, help="ILSVRC2012_img_val.tar, a flat tar")
    one.add_argument(
        "--devkit", type=Path, required=True, help="ILSVRC2012_devkit_t12.tar.gz: the classes"
    )
    one.add_argument("--out", type=Path, required=True, help="folder for the two indices")
    one.add_argument("--partial", action="store_true", help="accept other counts than ILSVRC's")
    one.set_defaults(run=ilsvrc)
    one = commands.add_parser("folder", help=folder.__doc__)
    one.add_argument("root", type=Path, help="folder with one folder a class")
    one.add_argument("--out", type=Path, help="index to write (default: ROOT's name .parquet)")
    one.set_defaults(run=folder)
    one = commands.add_parser("tar", help=tar.__doc__)
    one.add_argument("archive", type=Path, help="tar with one folder a class, not compressed")
    one.add_argument("--out", type=Path, help="index to write (default: the tar's name .parquet)")
    one.set_defaults(run=tar)
    for command in commands.choices.values():
        command.add_argument(
            "--verify", action="store_true", help="decode every image, not only its header (slow)"
        )
    one = commands.add_parser("join", help=join.__doc__)
    one.add_argument("indices", type=Path, nargs="+", help="indices to join, in this order")
    one.add_argument("--out", type=Path, required=True, help="index to write")
    one.set_defaults(run=join)
    one = commands.add_parser("mean", help=mean.__doc__)
    one.add_argument("index", type=Path, help="of the images to train on")
    one.add_argument("--out", type=Path, required=True, help=".npy file to write")
    one.add_argument("--root", help="folder of the archives or images, if they have been moved")
    one.add_argument("--crop", type=SIDE, default=224, help="side, in pixels (%(default)s)")
    one.add_argument(
        "--resize", type=SIDE, default=256, help="of the shorter side, in pixels (%(default)s)"
    )
    one.add_argument(
        "--channels", type=int, choices=(1, 3), default=3, help="1: grey (%(default)s)"
    )
    one.set_defaults(run=mean)
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    with guarded():
        arguments.run(arguments)
