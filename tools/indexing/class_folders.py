"""tools/index.py folder and tar: images in one folder for each class."""

import argparse
from pathlib import Path

from indexing.common import (
    check_out,
    classes_option,
    finish_scan,
    print_use,
    progress_bar,
    write,
)
from pipeline.data import scan
from pipeline.data.class_list import read_class_list
from pipeline.data.label_files import LabelFile, read_label_lines, to_labels
from pipeline.data.new_index import NewIndex
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError


def index_folder(options: argparse.Namespace) -> None:
    """Index an ImageFolder tree, or a folder with a file of labels."""
    root = options.root.resolve()
    out = options.out or Path(f"{root.name}.parquet")
    check_out(out)
    total = len(scan.list_folder(root)[0]) if root.is_dir() else 0
    with progress_bar("folder", total, in_bytes=False) as progress:
        if options.labels is None:
            if options.partial:
                raise UserError("folder: --partial has no effect without --labels FILE")
            rows, classes = scan.scan_folder(root, progress, classes_option(options))
        else:
            listed = None if options.classes is None else read_class_list(options.classes)
            labels, classes = to_labels(read_label_lines(options.labels), listed, options.labels)
            labels = LabelFile(options.labels, labels)
            rows = scan.scan_labelled_folder(root, labels, progress, options.partial)
    new_index = NewIndex(out, rows, classes, root)
    finish_scan(new_index, options.verify)
    write(new_index)
    print_use(out, options.classes)


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
    print_use(out, options.classes)
