"""tools/index.py ilsvrc: ILSVRC-2012's archives as downloaded."""

import argparse

from indexing.common import check_out, finish_scan, progress_bar, write
from pipeline.data import ilsvrc
from pipeline.data.new_index import NewIndex
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
