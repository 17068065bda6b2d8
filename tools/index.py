r"""Index images for --data.train and --data.val. Images are read from their archives or folders.

    python tools/index.py ilsvrc --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar \
        --devkit ILSVRC2012_devkit_t12.tar.gz --out DIR    # DIR/train.parquet, DIR/val.parquet
    python tools/index.py kaggle ROOT --out DIR            # ROOT/ILSVRC/Data/CLS-LOC; the same two
    python tools/index.py webdataset 'DIR/imagenet1k-train-*.tar' --out FILE.parquet
    python tools/index.py parquet 'DIR/train-*.parquet' --out FILE.parquet  # as Hugging Face's
    python tools/index.py folder ROOT --out FILE.parquet   # ROOT/class/image, as ImageFolder
    python tools/index.py folder ROOT --labels FILE --out VAL.parquet     # flat; FILE: name class
    python tools/index.py tar ARCHIVE --out FILE.parquet   # class/image members
    python tools/index.py folder ROOT --classes TRAIN.parquet --out VAL.parquet
    python tools/index.py join A.parquet B.parquet --out BOTH.parquet
    python tools/index.py show FILE.parquet --csv counts.csv --sheet crops.png
    python tools/index.py mean TRAIN.parquet --out mean.npy --crop 28 --resize 28 --channels 1

Only the headers of images are read, some thousand images per second; of Parquet files, all bytes.
Members that are not images are listed and left out. A class without images keeps its label.
--classes states the classes and their order, for a part of a data set that lacks some classes.
"""

import argparse
from pathlib import Path
from typing import Any

from indexing.class_folders import index_folder, index_tar
from indexing.common import print_use
from indexing.ilsvrc import index_archives, index_kaggle
from indexing.mean_image import write_mean
from indexing.parquet import index_parquet
from indexing.sheet import DATA_OPTIONS, DEFAULT_NUM, DEFAULT_SEED
from indexing.show import show_index
from indexing.webdataset import index_shards
from pipeline.config import DataConfig, arguments, checks
from pipeline.config.checks import Range
from pipeline.data import index
from pipeline.errors import exit_on_user_error
from pipeline.runtime.files import writable

_CROP_RANGE = checks.options(DataConfig)["crop_size"].range
assert _CROP_RANGE is not None
SIDE = arguments.Number(int, _CROP_RANGE)


CLASSES = (
    "the classes and their order: an index, or a text file with a class id on each line (and, "
    "after a tab or space, a name), such as LOC_synset_mapping.txt. To index evaluation images, "
    "use the index of the training images. Default: the folders, sorted; for webdataset and "
    "--labels, the numbers from 0 to the largest one, or the ids that --labels lists, sorted; for "
    "parquet, the names in the files, or else the numbers"
)


def join(options: argparse.Namespace) -> None:
    """Join several indices, for example of images and of adversarial examples."""
    with writable(options.out):
        number = index.join(options.indices, options.out)
    print(f"{options.out}: {number:,} images")
    print_use(options.out, None)


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(
        required=True,
        metavar="ilsvrc | kaggle | webdataset | parquet | folder | tar | join | show | mean",
    )
    add_ilsvrc(commands)
    add_webdataset(commands)
    add_parquet(commands)
    add_class_folders(commands)
    for name in ("webdataset", "parquet", "folder", "tar"):
        commands.choices[name].add_argument("--classes", type=Path, metavar="FILE", help=CLASSES)
    for command in commands.choices.values():
        command.add_argument(
            "--verify",
            action="store_true",
            help="decode every image with DALI, as training does, instead of reading only its "
            "header (slow; default: off)",
        )
    join_parser = commands.add_parser("join", help=join.__doc__)
    join_parser.add_argument("indices", type=Path, nargs="+", help="indices to join, in this order")
    join_parser.add_argument("--out", type=Path, required=True, help="index to write")
    join_parser.set_defaults(run=join)
    add_show(commands)
    add_mean(commands)
    return top


def add_ilsvrc(commands: Any) -> None:
    """Add the commands for ILSVRC-2012, which write train.parquet and val.parquet."""
    archives = commands.add_parser("ilsvrc", help=index_archives.__doc__)
    archives.add_argument(
        "--train", type=Path, help="ILSVRC2012_img_train.tar, a tar of class tars (default: none)"
    )
    archives.add_argument(
        "--val", type=Path, help="ILSVRC2012_img_val.tar, a flat tar (default: none)"
    )
    archives.add_argument(
        "--devkit", type=Path, required=True, help="ILSVRC2012_devkit_t12.tar.gz: the classes"
    )
    archives.set_defaults(run=index_archives)
    kaggle = commands.add_parser("kaggle", help=index_kaggle.__doc__)
    kaggle.add_argument(
        "root",
        type=Path,
        help="folder into which Kaggle's archive was unpacked, with ILSVRC/Data/CLS-LOC, "
        "LOC_synset_mapping.txt and LOC_val_solution.csv",
    )
    kaggle.set_defaults(run=index_kaggle)
    for command in (archives, kaggle):
        command.add_argument(
            "--out", type=Path, required=True, help="folder for train.parquet and val.parquet"
        )
        command.add_argument(
            "--partial",
            action="store_true",
            help="accept other numbers of images than ILSVRC's 1,281,167 and 50,000 (default: off)",
        )


def add_webdataset(commands: Any) -> None:
    """Add the command for WebDataset shards."""
    command = commands.add_parser("webdataset", help=index_shards.__doc__)
    command.add_argument(
        "shards",
        nargs="+",
        help="tars, not compressed: files, patterns such as 'train-*.tar', or ranges such as "
        "'train-{0000..1023}.tar'; they are put into natural order",
    )
    command.add_argument("--out", type=Path, required=True, help="index to write")
    command.add_argument(
        "--label-key",
        metavar="KEY",
        help="read class numbers, which count from 0, from this key of the samples' .json "
        "(default: from .cls, or else from the key label of .json)",
    )
    command.add_argument(
        "--repeated-keys",
        action="store_true",
        help="accept a key that occurs in several shards (default: off)",
    )
    command.set_defaults(run=index_shards)


def add_parquet(commands: Any) -> None:
    """Add the command for Parquet files of images."""
    command = commands.add_parser("parquet", help=index_parquet.__doc__)
    command.add_argument(
        "files",
        nargs="+",
        help="files, patterns such as 'train-*.parquet', or ranges such as "
        "'train-{00000..00293}-of-00294.parquet'; they are put into natural order",
    )
    command.add_argument("--out", type=Path, required=True, help="index to write")
    command.add_argument(
        "--image-key",
        metavar="COLUMN",
        default="image",
        help="column of the images: structs with the field bytes, or bytes (%(default)s)",
    )
    command.add_argument(
        "--label-key",
        metavar="COLUMN",
        default="label",
        help="column of the class numbers, which count from 0 (%(default)s)",
    )
    command.add_argument(
        "--repack",
        type=Path,
        metavar="DIR",
        help="write copies of compressed files, with uncompressed images, into this folder, and "
        "index the copies; a stopped command resumes with the next file (default: compressed "
        "files are refused)",
    )
    command.set_defaults(run=index_parquet)


def add_class_folders(commands: Any) -> None:
    """Add the commands for folders and for one tar."""
    folder = commands.add_parser("folder", help=index_folder.__doc__)
    folder.add_argument(
        "root", type=Path, help="folder with one folder for each class; with --labels, of any form"
    )
    folder.add_argument("--out", type=Path, help="index to write (default: ROOT's name .parquet)")
    folder.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="text with an image's path in ROOT, with or without its ending, and its class in each "
        "line, separated by a tab or a space: a class id, or a number that counts from 0 (default: "
        "classes are the folders)",
    )
    folder.add_argument(
        "--partial",
        action="store_true",
        help="accept lines of --labels for images that ROOT lacks (default: off)",
    )
    folder.set_defaults(run=index_folder)
    tar = commands.add_parser("tar", help=index_tar.__doc__)
    tar.add_argument(
        "archive", type=Path, nargs="+", help="tar with one folder for each class, not compressed"
    )
    tar.add_argument("--out", type=Path, help="index to write (default: the tar's name .parquet)")
    tar.set_defaults(run=index_tar)


def add_show(commands: Any) -> None:
    """Add the command that shows an index."""
    command = commands.add_parser("show", help=show_index.__doc__)
    command.add_argument("index", type=Path, help="index to show")
    command.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the images of each class (default: none)"
    )
    command.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="draw the first training crops of a run, as the net gets them (default: none)",
    )
    command.add_argument(
        "--num",
        type=arguments.Number(int, Range(minimum=1, maximum=1000)),
        help=f"crops of the sheet ({DEFAULT_NUM})",
    )
    command.add_argument(
        "--seed", type=arguments.SEED, help=f"train.seed of the sheet's run ({DEFAULT_SEED})"
    )
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="file of a run, whose section data says how the sheet's crops are made (default: the "
        "defaults of pipeline/finetune.py)",
    )
    for name in DATA_OPTIONS:
        command.add_argument(
            f"--data.{name}", metavar="VALUE", help="for the sheet; as of pipeline/finetune.py"
        )
    command.add_argument("--root", help="folder of the archives or images, if they have been moved")
    command.set_defaults(run=show_index)


def add_mean(commands: Any) -> None:
    """Add the command for mean images."""
    mean_parser = commands.add_parser("mean", help=write_mean.__doc__)
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
    mean_parser.set_defaults(run=write_mean)


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        args.run(args)
