"""tools/index.py ilsvrc and kaggle: ILSVRC-2012 as archives, or as Kaggle's tree."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from indexing.common import check_out, finish_scan, progress_bar, write
from pipeline.config import messages
from pipeline.data import ilsvrc, kaggle
from pipeline.data.new_index import NewIndex
from pipeline.data.scan import list_folder
from pipeline.data.scan_rows import Scan
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError


def index_archives(options: argparse.Namespace) -> None:
    """Index ILSVRC-2012's archives as downloaded."""
    if options.train is None and options.val is None:
        raise UserError("ilsvrc: give --train ARCHIVE, --val ARCHIVE or both")
    archives = {"train": options.train, "val": options.val}
    archives = {part: archive for part, archive in archives.items() if archive is not None}
    for part in archives:
        check_out(options.out / f"{part}.parquet")
    kit = ilsvrc.read_development_kit(options.devkit)
    labels = {wnid: label for label, wnid in enumerate(kit.wnids)}
    scans: dict[str, Scan] = {}
    for part, archive in archives.items():
        with progress_bar(part, file_size(archive), in_bytes=True) as progress:
            if part == "train":
                scans[part] = ilsvrc.scan_ilsvrc_train(archive, labels, progress)
            else:
                scans[part] = ilsvrc.scan_ilsvrc_val(archive, kit.validation_labels, progress)
    indices = {
        part: NewIndex.of_archive(
            options.out / f"{part}.parquet", rows, kit.classes, archives[part]
        )
        for part, rows in scans.items()
    }
    finish_parts(indices, options)


def index_kaggle(options: argparse.Namespace) -> None:
    """Index ILSVRC-2012 as Kaggle distributes it, unpacked."""
    root = options.root.resolve()
    parts = [part for part in ilsvrc.ILSVRC_COUNTS if has_part(root, part, options.partial)]
    if not parts:
        raise UserError(f"{root} has no folder {kaggle.IMAGES}/train or {kaggle.IMAGES}/val")
    for part in parts:
        check_out(options.out / f"{part}.parquet")
    classes = kaggle.read_classes(root)
    indices = {}
    for part in parts:
        folder = kaggle.part_folder(root, part)
        with progress_bar(part, len(list_folder(folder)[0]), in_bytes=False) as progress:
            if part == "train":
                rows = kaggle.scan_train(root, classes, progress)
            else:
                rows = kaggle.scan_val(root, classes, progress, options.partial)
        indices[part] = NewIndex(options.out / f"{part}.parquet", rows, classes, folder)
    finish_parts(indices, options)


def has_part(root: Path, part: str, partial: bool) -> bool:
    """Whether Kaggle's tree has the images of "train" or "val".

    Raises:
        UserError: it has not, and ``partial`` is not set.
    """
    folder = kaggle.part_folder(root, part)
    if not folder.is_dir() and not partial:
        raise UserError(
            f"no folder {folder}; give the folder into which Kaggle's archive was unpacked, or "
            "--partial to index the other part alone"
        )
    return folder.is_dir()


def finish_parts(indices: Mapping[str, NewIndex], options: argparse.Namespace) -> None:
    """Report the scans of "train" and "val", check their numbers of images, and write them.

    Raises:
        UserError: another number of images than ILSVRC-2012's, without --partial.
    """
    for part, new_index in indices.items():
        finish_scan(new_index, options.verify)
        expected = ilsvrc.ILSVRC_COUNTS[part]
        if len(new_index.rows) != expected and not options.partial:
            raise UserError(
                f"{part}: {len(new_index.rows):,} images, ILSVRC-2012 has {expected:,}; "
                "is the download complete? --partial accepts other counts"
            )
    for new_index in indices.values():
        write(new_index)
    paths = {part: new_index.path for part, new_index in indices.items()}
    print(messages.after_index(paths.get("train"), paths.get("val")))
