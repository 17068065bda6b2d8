"""The files of a board: pages, their index, the CSV table, contact sheets.

In: pages of rows. Out: DIR/index.html, protocol-N.html, board.csv, sheets/.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from board_page.columns import columns_of
from board_page.protocols import Page
from board_page.rows import Row
from pipeline.errors import UserError
from pipeline.evaluation.curves import LINE_STYLES, Curve
from pipeline.reports.evaluation_folders import shown_folders
from pipeline.reports.figures import ratio_edges, share_of_bins
from pipeline.runtime.files import atomic_write, writable
from pipeline.runtime.text_tables import csv_table

INDEX, TABLE, SHEETS = "index.html", "board.csv", "sheets"
_GENERATOR = '<meta name="generator" content="tools/board.py">'
_HERE = Path(__file__).parent
_DIGITS = 6  # of numbers that are only drawn


@dataclass(frozen=True)
class Board:
    """What is written."""

    title: str
    pages: Sequence[Page]
    unreadable: Sequence[str]  # a line for each folder that cannot be read
    sheets: dict[Path, str]  # names in SHEETS, by the folder of the evaluation
    level: float = 0.95  # of the intervals

    @property
    def num_rows(self) -> int:
        """Number of evaluations on all pages."""
        return sum(len(page.rows) for page in self.pages)


def check_folder(out: Path) -> None:
    """Refuse a folder with an index.html that is not a board's.

    Raises:
        UserError: there is one.
    """
    index = out / INDEX
    if index.exists() and not _is_of_a_board(index):
        raise UserError(f"{index} exists and is not of a board; give another --out")


def remove_earlier(out: Path) -> None:
    """Remove the pages and sheets of an earlier board in the same folder."""
    if not (out / INDEX).exists():
        return
    for path in [*out.glob("protocol-*.html"), *(out / SHEETS).glob("sheet-*.jpg")]:
        if path.suffix == ".jpg" or _is_of_a_board(path):
            path.unlink(missing_ok=True)


def _is_of_a_board(path: Path) -> bool:
    try:
        return _GENERATOR in path.read_text(errors="replace")[:2000]
    except OSError:
        return False


def write(board: Board, out: Path) -> None:
    """Write the pages, their index and the CSV table.

    Raises:
        UserError: a file cannot be written.
    """
    templates = _templates()
    common = {
        "board": board,
        "generator": Markup(_GENERATOR),
        "style": Markup(templates.get_template("board.css").render(colours=_colours())),
    }
    for page in board.pages:
        others = [(other, page.differences(other)) for other in board.pages if other is not page]
        _write(
            out / page.file_name,
            templates.get_template("page.html").render(
                **common,
                **_script(),
                page=page,
                columns=columns_of(page.rows),
                links=[_link(folder, out) for folder in shown_folders(page.evaluation_folders)],
                data=_data(page, board),
                others=others,
            ),
        )
    first = board.pages[0]
    differing = [(page, first.differences(page)) for page in board.pages]
    index = templates.get_template("index.html").render(**common, pages=differing)
    _write(out / INDEX, index)
    _write(out / TABLE, as_csv(board.pages))


def as_csv(pages: Iterable[Page]) -> str:
    """All rows with all digits, accuracies from 0 to 1; a column ``page`` numbers the pages."""
    lines: list[dict[str, Any]] = []
    for page in pages:
        columns = columns_of(page.rows)
        for row in page.rows:
            line: dict[str, Any] = {"page": page.number, "name": row.name}
            line["folder"] = str(row.evaluation_folder.folder)
            line |= {column.key: column.value(row) for column in columns}
            line |= _csv_only(row)
            lines.append(line)
    head = list(dict.fromkeys(key for line in lines for key in line))
    return csv_table(head, ([line.get(key) for key in head] for line in lines))


def _csv_only(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if row.versus is not None:
        if row.versus.ratio is not None:
            values = {"ratio_low": row.versus.ratio.low, "ratio_high": row.versus.ratio.high}
        values["mcnemar_p"] = row.versus.mcnemar_p
    return {
        **values,
        "num_samples": row.statistics.num_samples,
        "num_missing": row.summary.num_missing,
        "device": row.device,
        "weights": row.identity.weights,
        "index": row.identity.index,
        "notes": "; ".join(row.notes()),
    }


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _script() -> dict[str, Any]:
    """The script, and its hash: pages run no other script."""
    text = "\n".join((_HERE / name).read_text() for name in ("charts.js", "board.js"))
    assert "</" not in text, "it would end the element"
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def _colours() -> list[str]:
    return [style["color"] for style in LINE_STYLES]


def _link(folder: Path, out: Path) -> str:
    """A relative link from a page to a folder, so that both can be moved together."""
    return quote(os.path.relpath(folder, out.resolve())) + "/"


def _data(page: Page, board: Board) -> dict[str, Any]:
    """The numbers that the script draws."""
    edges = ratio_edges([ratio for row in page.rows for ratio in row.ratios.values()])
    return {
        "methods": list(page.rows[0].ratios),
        "norm": page.identity.protocol.norm,
        "edges": None if edges is None else _rounded(edges),
        "rows": [
            {
                "name": row.name,
                "sheet": _sheet(row, board),
                "curves": {
                    "relative": _curve_data(row.curves[True]),
                    "absolute": _curve_data(row.curves[False]),
                },
                "shares": {name: _shares(ratio, edges) for name, ratio in row.ratios.items()},
                "medians": {
                    name: _rounded(np.median(ratio, keepdims=True))[0] if len(ratio) else None
                    for name, ratio in row.ratios.items()
                },
            }
            for row in page.rows
        ],
    }


def _sheet(row: Row, board: Board) -> str | None:
    name = board.sheets.get(row.evaluation_folder.folder)
    return None if name is None else f"{SHEETS}/{name}"


def _curve_data(curves: dict[str, Curve]) -> dict[str, Any]:
    budget = next(iter(curves.values())).budget  # the same for all methods
    accuracy = {name: _rounded(curve.accuracy) for name, curve in curves.items()}
    return {"budget": _rounded(budget), "accuracy": accuracy}


def _shares(ratio: np.ndarray, edges: np.ndarray | None) -> list[float] | None:
    if edges is None or len(ratio) == 0:
        return None
    return _rounded(share_of_bins(ratio, edges))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _write(path: Path, text: str) -> None:
    with writable(path), atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
