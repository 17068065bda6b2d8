"""tools/index.py folder and tar: images in one folder for each class."""

import argparse
from pathlib import Path

from indexing.common import check_out, classes_option, finish_scan, progress_bar, write
from pipeline.data import scan
from pipeline.data.new_index import NewIndex
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError


def index_folder(options: argparse.Namespace) -> None:
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


def index_tar(options: argparse.Namespace) -> None:
    """Index a tar with one folder for each class."""
    if len(options.archive) > 1:
        raise UserError(
            "tar: index one archive at a time, each with the same --classes, then: "
            "tools/index.py join A.parquet B.parquet --out BOTH.parquet"
        )
    archive = options.archive[0].resolve()
    out = options.out or Path(f"{archive.stem}.parquet")
    check_out(out)
    with progress_bar("tar", file_size(archive), in_bytes=True) as progress:
        rows, classes = scan.scan_tar(archive, progress, classes_option(options))
    new_index = NewIndex.of_archive(out, rows, classes, archive)
    finish_scan(new_index, options.verify)
    write(new_index)
