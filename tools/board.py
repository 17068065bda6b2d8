"""A board of evaluations: static pages to sort, filter and compare them, and a CSV table.

    python tools/board.py runs --out board            # every evaluation at any depth below runs/
    python tools/board.py runs exports --out board --title "ResNet-18"
    python tools/board.py runs --out board --reference runs/reference    # with intervals

Evaluations are folders that pipeline/evaluate.py wrote, or those in evaluations/ of exports. Each
protocol (attacks and their options, norm, space, precision) and set of images has its own page,
because numbers of different ones cannot be compared; DIR/index.html lists the pages and states by
what they differ. The pages need no network and no server. A folder that cannot be read is named and
left out.
"""

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from board_page import writing
from board_page.protocols import measured, pages_of
from board_page.rows import Row, compare_with, read_row
from board_page.sheets import write_sheet
from pipeline.config import arguments
from pipeline.errors import UserError, exit_on_user_error, warn
from pipeline.reports import evaluation_folders, pairs
from pipeline.reports.evaluation_folders import EvaluationFolder
from pipeline.reports.paired_statistics import Resampling
from pipeline.reports.pairs import EvaluatedImages
from pipeline.reports.resampling_options import add_resampling, resampling_of
from pipeline.runtime.files import check_writable, report_unwritable

_Item = TypeVar("_Item")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    top.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folder that contains evaluations, at any depth",
    )
    top.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the pages; created"
    )
    top.add_argument("--title", default="Evaluations", help="heading of the pages (%(default)s)")
    top.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="evaluation that the others on its page are compared with, image by image: ratio of "
        "rho2 with its bootstrap interval, difference of accuracy with McNemar's p; up to 15 "
        "seconds for each (default: no comparison)",
    )
    add_resampling(top)
    top.add_argument(
        "--no-sheets",
        action="store_true",
        help="leave contact sheets out, which take about a second for each evaluation",
    )
    return top


def make(options: argparse.Namespace) -> None:
    """Read the evaluations and write the board."""
    check_writable(options.out / writing.INDEX)
    writing.check_folder(options.out)
    unreadable: list[str] = []  # a line for each folder
    evaluations = evaluation_folders.find(
        [*options.folders, *([options.reference] if options.reference else [])],
        lambda error: unreadable.append(f"{error.filename} cannot be read: {error.strerror}"),
    )
    rows = _read(evaluations, unreadable)
    warn(*unreadable)
    if not rows:
        names = ", ".join(map(str, options.folders))
        raise UserError(f"no evaluation that can be read is below {names}")
    if options.reference is not None:
        resampling = resampling_of(options)
        rows = _compared(rows, _reference(rows, options.reference), resampling)
    writing.remove_earlier(options.out)
    board = writing.Board(
        options.title,
        pages_of(rows),
        unreadable,
        sheets={} if options.no_sheets else _sheets(rows, options.out),
        level=options.level,
    )
    writing.write(board, options.out)
    _print_result(board, options.out)


def _read(evaluations: list[EvaluationFolder], unreadable: list[str]) -> list[Row]:
    """The rows of all evaluations; ``unreadable`` gets a line for each that cannot be read."""
    rows: list[Row] = []
    for evaluation in _progress(evaluations, "reading"):
        try:
            row = read_row(evaluation, (evaluation.export or evaluation.folder).name)
        except UserError as error:
            unreadable.append(str(error))
        else:
            rows += [] if row is None else [row]
    return rows


def _reference(rows: list[Row], folder: Path) -> Row:
    below = [row for row in rows if row.evaluation_folder.folder.is_relative_to(folder.resolve())]
    if len(below) != 1:
        raise UserError(f"--reference {folder} contains {len(below)} evaluations; it takes one")
    return below[0]


def _compared(rows: list[Row], reference: Row, resampling: Resampling) -> list[Row]:
    """The rows with their comparison, if they were measured as the reference was."""
    images, alike = pairs.read(reference.run), measured(reference.identity)
    compared = []
    for row in _progress(rows, "comparing"):
        if row is reference:
            compared.append(replace(row, is_reference=True))
        elif measured(row.identity) == alike:
            compared.append(_compared_row(row, images, resampling))
        else:
            compared.append(row)
    return compared


def _compared_row(row: Row, reference: EvaluatedImages, resampling: Resampling) -> Row:
    try:
        return replace(row, versus=compare_with(reference, row.run, resampling))
    except UserError as error:
        return replace(row, not_compared=str(error))


def _sheets(rows: list[Row], out: Path) -> dict[Path, str]:
    """Write contact sheets; their names by the folder of the evaluation."""
    names = {}
    with report_unwritable(out / writing.SHEETS, "give another --out"):
        (out / writing.SHEETS).mkdir(parents=True, exist_ok=True)
    for row in _progress(rows, "contact sheets"):
        folder = row.evaluation_folder.folder
        name = f"sheet-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}.jpg"
        try:
            if write_sheet(folder, out / writing.SHEETS / name):
                names[folder] = name
        except UserError as error:
            warn(str(error))
    return names


def _progress(items: list[_Item], description: str) -> Iterable[_Item]:
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, description, console=console, transient=True, disable=hidden)


def _print_result(board: writing.Board, out: Path) -> None:
    index = (out / writing.INDEX).resolve()
    pages = "1 page" if len(board.pages) == 1 else f"{len(board.pages)} pages"
    rows = "1 evaluation" if board.num_rows == 1 else f"{board.num_rows} evaluations"
    left_out = f", {len(board.unreadable)} unreadable left out" if board.unreadable else ""
    print(
        f"{rows} on {pages}{left_out}: {out / writing.INDEX}, "
        f"{out / writing.TABLE}; open {index.as_uri()} in a browser"
    )


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        make(args)
