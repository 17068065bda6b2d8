"""tools/index.py show: what an index holds."""

import argparse

from indexing.sheet import OPTIONS, write_sheet
from pipeline.data import index
from pipeline.data.index_summary import csv_rows, summary_lines
from pipeline.errors import UserError
from pipeline.runtime.files import check_writable, refuse_input, writable
from pipeline.runtime.text_tables import write_csv


def show_index(options: argparse.Namespace) -> None:
    """Show what an index holds: images by class, format, size and file."""
    check_options(options)
    images = index.read(str(options.index), options.root, option="index")
    archives = [images.root / name for name in images.file_sizes]
    inputs = [options.index, *archives, *([options.config] if options.config else [])]
    for name in ("csv", "sheet"):
        if getattr(options, name) is not None:
            refuse_input(getattr(options, name), inputs, f"--{name}")
    for line in summary_lines(images):
        print(line)
    if options.csv is not None:
        with writable(options.csv, "give another --csv"):
            write_csv(options.csv, ("label", "id", "name", "images"), csv_rows(images))
        print(f"{options.csv}: the number of images of {images.num_classes:,} classes")
    if options.sheet is not None:
        write_sheet(images, options)


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together, and outputs that cannot be written.

    Raises:
        UserError: names the option.
    """
    if options.sheet is None:
        for name in OPTIONS:
            if getattr(options, name) is not None:
                raise UserError(f"show: --{name} has no effect without --sheet FILE")
    elif options.sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {options.sheet}: a contact sheet is a .png file; name it so")
    for name in ("csv", "sheet"):
        if getattr(options, name) is not None:
            check_writable(getattr(options, name), f"give another --{name}")
