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
from pathlib import Path

from indexing.class_folders import index_folder, index_tar
from indexing.ilsvrc import index_archives
from indexing.mean_image import write_mean
from pipeline.config import DataConfig, arguments, checks
from pipeline.data import index
from pipeline.errors import exit_on_user_error
from pipeline.runtime.files import writable

_CROP_RANGE = checks.options(DataConfig)["crop_size"].range
assert _CROP_RANGE is not None
SIDE = arguments.Number(int, _CROP_RANGE)


def join(options: argparse.Namespace) -> None:
    """Join several indices, for example of images and of adversarial examples."""
    with writable(options.out):
        number = index.join(options.indices, options.out)
    print(f"{options.out}: {number:,} images")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(required=True, metavar="ilsvrc | folder | tar | join | mean")
    ilsvrc_parser = commands.add_parser("ilsvrc", help=index_archives.__doc__)
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
    ilsvrc_parser.set_defaults(run=index_archives)
    folder_parser = commands.add_parser("folder", help=index_folder.__doc__)
    folder_parser.add_argument("root", type=Path, help="folder with one folder for each class")
    folder_parser.add_argument(
        "--out", type=Path, help="index to write (default: ROOT's name .parquet)"
    )
    folder_parser.set_defaults(run=index_folder)
    tar_parser = commands.add_parser("tar", help=index_tar.__doc__)
    tar_parser.add_argument(
        "archive", type=Path, nargs="+", help="tar with one folder for each class, not compressed"
    )
    tar_parser.add_argument(
        "--out", type=Path, help="index to write (default: the tar's name .parquet)"
    )
    tar_parser.set_defaults(run=index_tar)
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
    return top


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        args.run(args)
