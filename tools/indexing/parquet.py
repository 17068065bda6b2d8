"""tools/index.py parquet: Parquet files of images, as those of Hugging Face."""

import argparse
from dataclasses import replace
from pathlib import Path

from indexing.common import check_out, finish_scan, print_use, progress_bar, say, write
from pipeline.data import parquet_repack
from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes
from pipeline.data.new_index import NewIndex
from pipeline.data.parquet_files import FileFacts, ParquetShards, read_facts
from pipeline.data.parquet_images import scan_images
from pipeline.data.parquet_rows import read_rows
from pipeline.data.shards import list_shards
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError


def index_parquet(options: argparse.Namespace) -> None:
    """Index Parquet files of images, such as ImageNet-1k on the Hugging Face hub."""
    check_out(options.out)
    shards = ParquetShards(
        paths=list_shards(options.files, "parquet"),
        classes=None if options.classes is None else read_class_list(options.classes),
        image_key=options.image_key,
        label_key=options.label_key,
    )
    facts = read_facts(shards)
    rows, classes = read_rows(shards, facts)
    shards, facts = repacked(shards, facts, options.repack)
    num_bytes = sum(map(file_size, shards.paths))
    with progress_bar("parquet", num_bytes, in_bytes=True) as progress:
        scan = scan_images(shards, facts, rows, progress)
    new_index = NewIndex(options.out, scan, classes, shards.root, shards.archives)
    finish_scan(new_index, options.verify)
    write(new_index)
    if options.classes is None:
        note_names(classes)
    print_use(options.out, options.classes)


def repacked(
    shards: ParquetShards, facts: list[FileFacts], folder: Path | None
) -> tuple[ParquetShards, list[FileFacts]]:
    """The files to index: copies in --repack DIR of those whose images cannot be read in place.

    Raises:
        UserError: there are such files and no --repack; the copies cannot be written.
    """
    copies = parquet_repack.plan_copies(shards, facts, folder or Path())
    if not copies:
        if folder is not None:
            say("--repack has no effect: the images of all files can be read in place")
        return shards, facts
    if folder is None:
        first, amount = copies[0], sum(copy.facts.num_bytes for copy in copies)
        raise UserError(
            f"{first.source}: its images are {first.facts.obstacle}, and images are read in place; "
            f"run again with --repack DIR, which writes uncompressed copies of {len(copies):,} of "
            f"{len(facts):,} files ({amount / 1e9:,.1f} GB)"
        )
    remaining = [copy for copy in copies if not copy.is_complete()]
    if len(remaining) < len(copies):
        say(f"{len(copies) - len(remaining):,} of {len(copies):,} copies are in {folder} already")
    if remaining:
        parquet_repack.check_space(remaining, folder)
        total = sum(copy.facts.num_bytes for copy in remaining)
        with progress_bar("repack", total, in_bytes=True) as progress:
            parquet_repack.write_copies(remaining, progress)
    targets = {copy.source: copy.target for copy in copies}
    shards = replace(shards, paths=[targets.get(path, path) for path in shards.paths])
    return shards, read_facts(shards)


def note_names(classes: Classes) -> None:
    """State how ILSVRC's classes get the ids of the other layouts, if these are ILSVRC's names."""
    if len(classes) == 1000 and classes.names[0].startswith("tench"):
        say(
            "note: the ids of these classes are their English names; --classes "
            "LOC_synset_mapping.txt gives them WordNet ids, as the other layouts of ILSVRC have"
        )
