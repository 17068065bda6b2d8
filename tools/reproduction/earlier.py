"""Rows of an earlier report, of other seeds, for the tables of a new one (--with-report).

In: the folder of a report. Out: its rows by method and seed.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.reports.table import TableRow
from pipeline.reports.table_formats import COLUMNS
from reproduction.distances import Distances

TABLE, DISTANCES, PAGE = "table.csv", "distances.csv", "report.md"

RowsBySeed = dict[int, TableRow]
Row = TypeVar("Row")


def table_rows(folder: Path, network: str, titles: Mapping[str, str]) -> dict[str, RowsBySeed]:
    """The rows of a report's table, by name of the method and seed.

    Args:
        folder: of the report.
        network: title of the experiment.
        titles: of its methods, by their names. Rows of other methods are left out.

    Raises:
        UserError: the folder has no table of a report.
    """
    rows: dict[str, RowsBySeed] = {}
    for method, seed, values in _lines(folder / TABLE, titles):
        missing = [name for name in COLUMNS if name not in values]
        if missing:
            raise UserError(f"--with-report: {folder / TABLE} has no column {missing[0]}")
        accuracy, rho, *after_fgs, eps_ref = (values[name] for name in COLUMNS)
        if accuracy is None or rho is None:
            raise UserError(f"{folder / TABLE}: a row of {titles[method]} has no accuracy or rho2")
        row = TableRow(network, titles[method], accuracy, rho, tuple(after_fgs), eps_ref)
        rows.setdefault(method, {})[seed] = row
    return rows


def distances(folder: Path, titles: Mapping[str, str]) -> Distances:
    """The distances of a report, by name of the method and seed; none if it has no such table.

    Raises:
        UserError: the table is damaged.
    """
    if not (folder / DISTANCES).exists():
        return {}
    rows: Distances = {}
    for method, seed, values in _lines(folder / DISTANCES, titles):
        numbers = {name: value for name, value in values.items() if value is not None}
        rows.setdefault(method, {})[seed] = numbers
    return rows


def setting(folder: Path) -> list[str]:
    """The lines of a report with its data, versions and machine."""
    page = folder / PAGE
    lines = page.read_text().splitlines() if page.exists() else []
    return [line for line in lines if line.startswith("- ")]


def merged(
    new: Mapping[str, Mapping[int, Row]],
    old: Mapping[str, Mapping[int, Row]],
    titles: Mapping[str, str],
) -> dict[str, dict[int, Row]]:
    """The rows of both reports by method and seed, in the order of the titles.

    Of a seed that both have, the new row.
    """
    return {
        method: dict(sorted({**old.get(method, {}), **new.get(method, {})}.items()))
        for method in titles
        if method in old or method in new
    }


def _lines(path: Path, titles: Mapping[str, str]) -> list[tuple[str, int, dict[str, float | None]]]:
    """Method, seed and numbers of each row."""
    names = {title: name for name, title in titles.items()}
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows = [row for row in rows if row["method"] in names]
        return [(names[row.pop("method")], int(row.pop("seed")), _numbers(row)) for row in rows]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"--with-report: {path} is no table of a report ({error})") from None


def _numbers(row: Mapping[str, str]) -> dict[str, float | None]:
    return {name: float(text) if text else None for name, text in row.items()}
