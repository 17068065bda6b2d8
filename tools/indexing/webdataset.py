"""tools/index.py webdataset: shards of samples with class numbers."""

import argparse

from indexing.common import check_out, finish_scan, print_use, progress_bar, write
from pipeline.data import webdataset
from pipeline.data.class_list import read_class_list
from pipeline.data.new_index import NewIndex
from pipeline.data.shards import list_shards
from pipeline.data.tar_members import file_size


def index_shards(options: argparse.Namespace) -> None:
    """Index WebDataset shards: tars of KEY.jpg with KEY.cls or KEY.json."""
    check_out(options.out)
    shards = webdataset.Shards(
        paths=list_shards(options.shards, "webdataset"),
        classes=None if options.classes is None else read_class_list(options.classes),
        label_key=options.label_key,
        repeated_keys=options.repeated_keys,
    )
    num_bytes = sum(map(file_size, shards.paths))
    with progress_bar("webdataset", num_bytes, in_bytes=True) as progress:
        rows, classes = webdataset.scan_shards(shards, progress)
    new_index = NewIndex(options.out, rows, classes, shards.root, shards.archives)
    finish_scan(new_index, options.verify)
    write(new_index)
    print_use(options.out, options.classes)
