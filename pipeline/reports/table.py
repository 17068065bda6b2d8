"""Runs in the shape of the paper's Table 1: accuracy, rho2, accuracy after FGS at eps_ref.

In: `Run`s labelled NETWORK:METHOD. Out: the table as Markdown, CSV or LaTeX.
"""

from typing import Any, NamedTuple

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.config.parse import differences
from pipeline.errors import warn
from pipeline.evaluation.statistics import Statistics, accuracy_at
from pipeline.runtime.text_tables import csv_table, markdown_table

from .runs import Run


class TableRow(NamedTuple):
    """One line; accuracies from 0 to 1."""

    network: str
    method: str
    accuracy: float
    rho: float
    after_fgs: tuple[float | None, ...]  # at 0.2, 0.5 and 1.0 eps_ref
    eps_ref: float | None
    bounds: tuple[float, float] | None = None  # means of a lower bound and of the best known ratio


def rows_of(runs: list[Run], eps_ref: float | None = None) -> list[TableRow]:
    """One row for an evaluation, and two (before and after) for a fine-tuning, by network.

    Args:
        runs: the order of the rows; runs of one network are put together.
        eps_ref: eps_ref of every row. Default: evaluation.fgs.reference of a network's runs, or
            eps_ref of its last run that searched for one. (The Deep Defense model should be last,
            as in the paper.)
    """
    networks: dict[str, list[Run]] = {}
    for run in runs:
        networks.setdefault(_network(run), []).append(run)
    rows: list[TableRow] = []
    for network, members in networks.items():
        reference = _reference(members) if eps_ref is None else eps_ref
        for run in members:
            rows += _rows(network, run, reference)
    return rows


def _network(run: Run) -> str:
    network, colon, _ = run.label.partition(":")
    if colon:
        return network
    return run.evaluation.identity.model if run.is_evaluation else str(run.option("model.name"))


def _method(run: Run) -> str:
    return run.label.partition(":")[2] or run.label


def _reference(runs: list[Run]) -> float | None:
    """eps_ref of a network, from its runs."""
    statistics = [run.evaluation.statistics.fgs for run in runs if run.is_evaluation]
    measured = [fgs for fgs in statistics if fgs is not None]
    references = [fgs.reference for fgs in measured if fgs.reference]
    searched = [fgs.eps_ref for fgs in measured if fgs.eps_ref]
    candidates = references or searched
    return candidates[-1] if candidates else None


def _rows(network: str, run: Run, reference: float | None) -> list[TableRow]:
    not_measured = (None,) * len(EPS_REF_FRACTIONS)
    if not run.is_evaluation:
        measured = {"Reference": run.finetuning.before, _method(run): run.finetuning.after}
        return [
            TableRow(network, method, entry.accuracy, entry.rho, not_measured, None)
            for method, entry in measured.items()
        ]
    after_fgs = not_measured
    if reference is not None:
        after_fgs = tuple(_after_fgs(run, f * reference) for f in EPS_REF_FRACTIONS)
    statistics = run.evaluation.statistics
    measured = (statistics.accuracy, statistics.rho, after_fgs, reference, _bounds(statistics))
    return [TableRow(network, _method(run), *measured)]


def _bounds(statistics: Statistics) -> tuple[float, float] | None:
    diagnostics = statistics.diagnostics
    bound = None if diagnostics is None else diagnostics.lower_bound
    return None if bound is None else (bound["mean"], bound["mean_upper"])


def _after_fgs(run: Run, eps: float) -> float | None:
    """The measured accuracy; otherwise the one computed from each image's smallest eps; None
    without either."""
    fgs = run.evaluation.statistics.fgs
    if fgs is None:
        return None
    for entry in fgs.accuracy:
        if abs(entry.eps - eps) <= 1e-6 * eps:
            return entry.accuracy
    return accuracy_at(run.samples, eps) if fgs.searched else None


def warn_of_differences(runs: list[Run]) -> None:
    """Warn where the rows' numbers have different meanings."""
    first = runs[0]
    for run in runs[1:]:
        changed = differences(first.protocol.to_dict(), run.protocol.to_dict(), ("fgs",))
        if changed:
            changes = "; ".join(changed)
            warn(f"{first.folder} and {run.folder} were measured differently: {changes}")
    warn_of_data_sets(runs)


def warn_of_data_sets(runs: list[Run]) -> None:
    """Warn where a network's runs used different images."""
    first: dict[tuple[str, bool], Run] = {}
    for run in runs:
        network = _network(run)
        earlier = first.setdefault((network, run.is_evaluation), run)
        if earlier is run:
            continue
        changed = differences(_images_of(earlier), _images_of(run), ())
        if changed:
            warn(
                f"{earlier.folder} and {run.folder}, both of {network}, used different images: "
                f"{'; '.join(changed)}"
            )


def _images_of(run: Run) -> dict[str, Any]:
    """The identity of the images that a run was evaluated on."""
    if run.is_evaluation:
        identity = run.evaluation.identity.to_dict()
        return {name: identity[name] for name in ("index", "num_indexed", "num_images")}
    return {name: run.option(name) for name in ("data.val", "evaluation.num_images")}


COLUMNS = (  # the measured values of a row, in CSV
    "accuracy",
    "rho2",
    *(f"accuracy_at_{f:g}_eps_ref" for f in EPS_REF_FRACTIONS),
    "eps_ref",
)
HEAD = ("Network", "Method", "Accuracy", "rho2", *(f"@{f:g}" for f in EPS_REF_FRACTIONS))
BOUND_COLUMNS = ("rho2_lower", "rho2_upper")  # in CSV, if a row has them


def markdown(rows: list[TableRow]) -> str:
    """The rows as a Markdown table; accuracies in percent."""
    with_bounds = any(row.bounds for row in rows)
    head = (*HEAD, "rho2 in") if with_bounds else HEAD
    lines = ([*_cells(row), *([_interval(row)] * with_bounds)] for row in _grouped(rows))
    return markdown_table(head, lines, num_left=2)


def latex(rows: list[TableRow]) -> str:
    """The rows as a LaTeX tabular for the package booktabs; accuracies in percent."""
    head = ["Network", "Method", r"Acc.\,(\%)", r"$\rho_2$"]
    head += [rf"@{f:.1f}\,$\epsilon_\mathrm{{ref}}$" for f in EPS_REF_FRACTIONS]
    with_bounds = any(row.bounds for row in rows)
    head += [r"$\rho_2$ in"] * with_bounds
    lines = [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule"]
    lines.append(" & ".join(head) + r" \\")
    for row in _grouped(rows):
        if row.network:
            lines.append(r"\midrule")
        network, method, accuracy, rho, *after = _cells(row)
        mantissa, exponent = rho.split("e")
        number = rf"${mantissa} \times 10^{{{exponent}}}$"
        cells = [_escaped(network), _escaped(method), accuracy, number, *after]
        cells += [_interval(row)] * with_bounds
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(rows: list[TableRow]) -> str:
    """The rows as CSV with all digits; accuracies from 0 to 1."""
    with_bounds = any(row.bounds for row in rows)
    head = ["network", "method", *COLUMNS, *(BOUND_COLUMNS if with_bounds else ())]
    empty = (None, None) if with_bounds else ()
    lines = ([*row[:4], *row.after_fgs, row.eps_ref, *(row.bounds or empty)] for row in rows)
    return csv_table(head, lines)


FORMATS = {"markdown": markdown, "csv": as_csv, "latex": latex}


def _grouped(rows: list[TableRow]) -> list[TableRow]:
    """Rows with the name of their network in its first row only."""
    grouped: list[TableRow] = []
    last_network = None
    for row in rows:
        grouped.append(row._replace(network="") if row.network == last_network else row)
        last_network = row.network
    return grouped


def _cells(row: TableRow) -> tuple[str, ...]:
    mantissa, exponent = f"{row.rho:.2e}".split("e")
    after = ("" if value is None else f"{100 * value:.2f}" for value in row.after_fgs)
    rho = f"{mantissa}e{int(exponent)}"
    return (row.network, row.method, f"{100 * row.accuracy:.2f}", rho, *after)


def _interval(row: TableRow) -> str:
    return "" if row.bounds is None else "[{:.2e}, {:.2e}]".format(*row.bounds)


def _escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)
