"""Runs in the shape of the paper's Table 1: accuracy, rho2, accuracy after FGS at eps_ref.

In: `Run`s labelled NETWORK:METHOD. Out: the table as Markdown, CSV or LaTeX.
"""

from typing import Any, NamedTuple

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.config.parse import differences
from pipeline.errors import warn
from pipeline.evaluation.samples import accuracy_at, rho_name

from .runs import Run
from .text_tables import csv_table, markdown_table


class Row(NamedTuple):
    """One line; accuracies from 0 to 1."""

    network: str
    method: str
    accuracy: float
    rho: float
    after_fgs: tuple[float | None, ...]  # at 0.2, 0.5 and 1.0 eps_ref
    eps_ref: float | None


def rows_of(runs: list[Run], eps_ref: float | None = None) -> list[Row]:
    """A row a run, and two (before and after) of a fine-tuning; networks stay together.

    eps_ref of a network: the one given; or the one that its runs were evaluated at; or that of its
    last run that searched for one (put the Deep Defense model last, as the paper does).
    """
    networks: dict[str, list[Run]] = {}
    for run in runs:
        networks.setdefault(_network(run), []).append(run)
    rows: list[Row] = []
    for network, members in networks.items():
        reference = _reference(members) if eps_ref is None else eps_ref
        for run in members:
            rows += _rows(network, run, reference)
    return rows


def _network(run: Run) -> str:
    network, colon, _ = run.label.partition(":")
    return network if colon else str(run.summary.get("model") or run.option("model.name"))


def _method(run: Run) -> str:
    return run.label.partition(":")[2] or run.label


def _reference(runs: list[Run]) -> float | None:
    found = [run.summary.get("fgs") or {} for run in runs]
    for name in ("reference", "eps_ref"):
        values = [fgs[name] for fgs in found if fgs.get(name)]
        if values:
            return values[-1]
    return None


def _rows(network: str, run: Run, reference: float | None) -> list[Row]:
    rho = rho_name(run.summary["definition"])
    none = (None,) * len(EPS_REF_FRACTIONS)
    if not run.is_evaluation:
        named = {"Reference": run.summary["before"], _method(run): run.summary["after"]}
        return [Row(network, name, v["accuracy"], v[rho], none, None) for name, v in named.items()]
    after = none
    if reference is not None:
        after = tuple(_after_fgs(run, f * reference) for f in EPS_REF_FRACTIONS)
    summary = run.summary
    return [Row(network, _method(run), summary["accuracy"], summary[rho], after, reference)]


def _after_fgs(run: Run, eps: float) -> float | None:
    """As measured; or else read from each image's smallest eps; or None."""
    fgs = run.summary.get("fgs") or {}
    for entry in fgs.get("accuracy", []):
        if abs(entry["eps"] - eps) <= 1e-6 * eps:
            return entry["accuracy"]
    return accuracy_at(run.samples, eps) if "eps_ref" in fgs else None


def warn_of_differences(runs: list[Run]) -> None:
    """Say on stderr where rows do not mean the same."""
    first = runs[0]
    for run in runs[1:]:
        earlier, later = ({**r.summary["definition"], "fgs": None} for r in (first, run))
        changed = differences(earlier, later, ())
        if changed:
            warn(f"{first.folder} and {run.folder} are defined differently: {'; '.join(changed)}")
    warn_of_data_sets(runs)


def warn_of_data_sets(runs: list[Run]) -> None:
    """Say on stderr where a network's runs are of different images."""
    first: dict[tuple[str, bool], Run] = {}
    for run in runs:
        network = _network(run)
        earlier = first.setdefault((network, run.is_evaluation), run)
        if earlier is run:
            continue
        changed = differences(_images_of(earlier), _images_of(run), ())
        if changed:
            warn(
                f"{earlier.folder} and {run.folder}, both of {network}, are of different images: "
                f"{'; '.join(changed)}"
            )


def _images_of(run: Run) -> dict[str, Any]:
    """What identifies the images that a run was evaluated on."""
    if run.is_evaluation:
        names = ("index", "num_indexed", "num_images")
        return {name: run.summary.get(name) for name in names}
    return {name: run.option(name) for name in ("data.val", "evaluation.num_images")}


COLUMNS = (  # of what a row measures, in CSV
    "accuracy",
    "rho2",
    *(f"accuracy_at_{f:g}_eps_ref" for f in EPS_REF_FRACTIONS),
    "eps_ref",
)
HEAD = ("Network", "Method", "Accuracy", "rho2", *(f"@{f:g}" for f in EPS_REF_FRACTIONS))


def markdown(rows: list[Row]) -> str:
    """As a Markdown table; accuracies in percent."""
    return markdown_table(HEAD, map(_cells, _grouped(rows)), num_left=2)


def latex(rows: list[Row]) -> str:
    """As a LaTeX tabular for the package booktabs; accuracies in percent."""
    head = [r"Network", r"Method", r"Acc.\,(\%)", r"$\rho_2$"]
    head += [rf"@{f:.1f}\,$\epsilon_\mathrm{{ref}}$" for f in EPS_REF_FRACTIONS]
    lines = [rf"\begin{{tabular}}{{ll{'r' * (len(HEAD) - 2)}}}", r"\toprule"]
    lines.append(" & ".join(head) + r" \\")
    for row in _grouped(rows):
        if row.network:
            lines.append(r"\midrule")
        network, method, accuracy, rho, *after = _cells(row)
        mantissa, exponent = rho.split("e")
        number = rf"${mantissa} \times 10^{{{exponent}}}$"
        cells = [_escaped(network), _escaped(method), accuracy, number, *after]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(rows: list[Row]) -> str:
    """As CSV, every digit kept; accuracies from 0 to 1."""
    lines = ([*row[:4], *row.after_fgs, row.eps_ref] for row in rows)
    return csv_table(["network", "method", *COLUMNS], lines)


FORMATS = {"markdown": markdown, "csv": as_csv, "latex": latex}


def _grouped(rows: list[Row]) -> list[Row]:
    """Each network named once."""
    before = [None, *(row.network for row in rows)]
    return [
        row._replace(network="" if row.network == last else row.network)
        for row, last in zip(rows, before, strict=False)
    ]


def _cells(row: Row) -> tuple[str, ...]:
    mantissa, exponent = f"{row.rho:.2e}".split("e")
    after = ("" if value is None else f"{100 * value:.2f}" for value in row.after_fgs)
    rho = f"{mantissa}e{int(exponent)}"
    return (row.network, row.method, f"{100 * row.accuracy:.2f}", rho, *after)


def _escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)
