"""Tables as text: Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.runtime.files import atomic_write


def short_number(value: float | None) -> str:
    """Four digits; - without a value."""
    return "-" if value is None else f"{value:.4g}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]], num_left: int = 1) -> str:
    """A Markdown table.

    Args:
        head: names of the columns.
        lines: cells of each line.
        num_left: number of leading columns that are aligned to the left; the others are numbers.
    """
    rule = ["---"] * num_left + ["---:"] * (len(head) - num_left)
    rows = ([cell.replace("|", r"\|") for cell in line] for line in (head, rule, *lines))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def csv_table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A CSV table with all digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV table, atomically."""
    with atomic_write(path) as partial:
        partial.write_text(csv_table(head, lines), newline="")
