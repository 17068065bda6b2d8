"""Steps of every command: the progress bar, refusals before a scan, the report after it."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.config import messages
from pipeline.data import index
from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes
from pipeline.data.new_index import NewIndex
from pipeline.data.scan_rows import ReportProgress
from pipeline.errors import UserError, first_few
from pipeline.runtime.files import check_writable, writable

console = Console(stderr=True, soft_wrap=True)


@contextmanager
def progress_bar(name: str, total: int, in_bytes: bool) -> Iterator[ReportProgress]:
    """A progress bar with the time left; yields a function to call with the amount done so far."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn(name), BarColumn(), amount, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)


def classes_option(options: argparse.Namespace) -> Callable[[list[str]], Classes] | None:
    """A function from the names of the class folders to the classes of --classes."""
    if options.classes is None:
        return None
    return lambda folders: read_class_list(options.classes, folders)


def check_out(path: Path) -> None:
    """Refuse an output that cannot be written, before the scan."""
    check_writable(path)
    index.refuse_other_file(path)


def finish_scan(new_index: NewIndex, verify: bool) -> None:
    """Decode the images if ``verify`` is set, and list the members that are left out.

    Raises:
        UserError: no image is left.
    """
    if verify and len(new_index.rows):
        with progress_bar("verify", len(new_index.rows), in_bytes=False) as progress:
            new_index.verify(progress)
    for line in new_index.rejected_lines():
        say(line)
    if len(new_index.rows) == 0:
        raise UserError(f"{new_index.source} contains no images that can be indexed")
    empty = new_index.rows.empty_classes(new_index.classes)
    if empty:
        have = "class has" if len(empty) == 1 else "classes have"
        names = [repr(name) if "," in name else name for name in empty]
        say(f"warning: {len(empty):,} {have} no images: {first_few(names)}")


def say(line: str) -> None:
    """Print a line above the progress bar."""
    console.print(line, highlight=False, markup=False)


def write(new_index: NewIndex) -> None:
    """Write one index and print a summary of it."""
    with writable(new_index.path):
        new_index.write()
    print(new_index.summary())


def print_use(path: Path, classes: Path | None) -> None:
    """Print the options of a run that uses an index.

    Args:
        path: the index.
        classes: the file of --classes; if it is an index, it is that of the training images.
    """
    is_of_evaluation = classes is not None and classes.suffix == ".parquet"
    print(messages.after_index(classes if is_of_evaluation else path, path))
