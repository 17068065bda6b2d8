"""The table of runs as Markdown, CSV or LaTeX.

In: `TableRow`s. If a row has distances by several attacks, the table has a column for rho2 by each,
for the best and for DeepFool / best; if a row has lower bounds, also the two ends of the interval.
"""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.runtime.text_tables import csv_table, markdown_table

from .axes import tex
from .table import TableRow

COLUMNS = (  # in CSV, without the optional ones
    "accuracy",
    "rho2",
    *(f"accuracy_at_{f:g}_eps_ref" for f in EPS_REF_FRACTIONS),
    "eps_ref",
)


class _Column(NamedTuple):
    head: str  # in Markdown
    latex: str
    csv: str
    value: Callable[[TableRow], float | None]
    text: Callable[[float], str]
    latex_text: Callable[[float], str]


def markdown(rows: list[TableRow]) -> str:
    """The rows as a Markdown table; accuracies in percent."""
    columns = _columns(rows)
    head = ["Network", "Method", *(column.head for column in columns)]
    lines = (
        [*row[:2], *(_cell(column.value(row), column.text) for column in columns)]
        for row in _grouped(rows)
    )
    return markdown_table(head, lines, num_left=2)


def latex(rows: list[TableRow]) -> str:
    """The rows as a LaTeX tabular for the package booktabs; accuracies in percent."""
    columns = _columns(rows)
    head = ["Network", "Method", *(column.latex for column in columns)]
    lines = [rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}", r"\toprule"]
    lines.append(" & ".join(head) + r" \\")
    for row in _grouped(rows):
        if row.network:
            lines.append(r"\midrule")
        numbers = (_cell(column.value(row), column.latex_text) for column in columns)
        cells = [_escaped(row.network), _escaped(row.method), *numbers]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(rows: list[TableRow]) -> str:
    """The rows as CSV with all digits; accuracies from 0 to 1. Optional columns are at the end."""
    optional = [*_attack_columns(rows), *_bound_columns(rows)]
    columns = (_rho_name(rows) if name == "rho2" else name for name in COLUMNS)
    head = ["network", "method", *columns, *(column.csv for column in optional)]
    lines = (
        [*row[:4], *row.after_fgs, row.eps_ref, *(column.value(row) for column in optional)]
        for row in rows
    )
    return csv_table(head, lines)


FORMATS = {"markdown": markdown, "csv": as_csv, "latex": latex}


def _columns(rows: list[TableRow]) -> list[_Column]:
    """The columns of numbers, in the order of Markdown and LaTeX."""
    percent = (_percent, _percent)
    after_fgs = (
        _Column(
            f"@{fraction:g}",
            rf"@{fraction:.1f}\,$\epsilon_\mathrm{{ref}}$",
            "",
            lambda row, number=number: row.after_fgs[number],
            *percent,
        )
        for number, fraction in enumerate(EPS_REF_FRACTIONS)
    )
    return [
        _Column("Accuracy", r"Acc.\,(\%)", "", lambda row: row.accuracy, *percent),
        _rho_column(_rho_name(rows), "", lambda row: row.rho),
        *_attack_columns(rows),
        *after_fgs,
        *_bound_columns(rows),
    ]


def _attack_columns(rows: list[TableRow]) -> list[_Column]:
    """rho2 by each attack, the best and DeepFool / best, if at least one row has several."""
    by_attack = [row.by_attack for row in rows if row.by_attack is not None]
    if all(len(attacks.rho) < 2 for attacks in by_attack):
        return []
    names = dict.fromkeys(name for attacks in by_attack for name in attacks.rho)
    rho = _rho_name(rows)
    rhos = [_rho_column(rho, name, lambda row, name=name: _rho_by(row, name)) for name in names]
    head = "DeepFool / best"
    ratio = _Column(head, head, "deepfool_over_best", _over_best, "{:.3f}".format, "{:.3f}".format)
    best = _rho_column(rho, "best", lambda row: row.by_attack and row.by_attack.best)
    return [*rhos, best, ratio]


def _bound_columns(rows: list[TableRow]) -> list[_Column]:
    """Both ends of the interval of rho2, if a row has them."""
    if not any(row.bounds for row in rows):
        return []
    rho = _rho_name(rows)
    return [
        _rho_column(rho, "lower", lambda row: row.bounds and row.bounds[0]),
        _rho_column(rho, "upper", lambda row: row.bounds and row.bounds[1]),
    ]


def _rho_name(rows: list[TableRow]) -> str:
    """The name of the rows' mean ratio; rho if their norms differ, which `warn_of_differences`
    reports."""
    names = {row.rho_name for row in rows}
    return names.pop() if len(names) == 1 else "rho"


def _rho_column(rho: str, name: str, value: Callable[[TableRow], float | None]) -> _Column:
    latex = rf"{tex(rho)} {_escaped(name)}".strip()
    csv = f"{rho}_{name}" if name else rho
    return _Column(f"{rho} {name}".strip(), latex, csv, value, _scientific, _power_of_ten)


def _rho_by(row: TableRow, name: str) -> float | None:
    return None if row.by_attack is None else row.by_attack.rho.get(name)


def _over_best(row: TableRow) -> float | None:
    return None if row.by_attack is None else row.by_attack.deepfool_over_best


def _grouped(rows: list[TableRow]) -> list[TableRow]:
    """Rows with the name of their network in its first row only."""
    grouped: list[TableRow] = []
    last_network = None
    for row in rows:
        grouped.append(row._replace(network="") if row.network == last_network else row)
        last_network = row.network
    return grouped


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _scientific(rho: float) -> str:
    mantissa, exponent = f"{rho:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _power_of_ten(rho: float) -> str:
    mantissa, exponent = _scientific(rho).split("e")
    return rf"${mantissa} \times 10^{{{exponent}}}$"


_LATEX = {letter: "\\" + letter for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
