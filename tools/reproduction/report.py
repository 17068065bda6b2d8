"""The table with the paper's numbers beside ours, the figures, and where they come from.

In: units that are done. Out: OUTPUT/report/.
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.reports import figures, runs, table
from pipeline.reports.table import Row
from pipeline.reports.text_tables import csv_table, markdown_table
from pipeline.runtime.files import atomic_write
from reproduction import data, run
from reproduction.experiments import DEEP_DEFENSE, REFERENCE, Experiment
from reproduction.plan import PlannedRun

_HEAD = ("Method", "accuracy, %", "rho2", *(f"@{f:g}" for f in EPS_REF_FRACTIONS))


def titles(experiment: Experiment) -> dict[str, str]:
    """Of the reference and of each method, by name, in the table's order."""
    return {REFERENCE: "Reference"} | {m.name: m.title for m in experiment.methods}


def rows(experiment: Experiment, output: Path, seeds: Sequence[int]) -> dict[str, dict[int, Row]]:
    """By the method's name and the seed, read at the eps_ref of that seed's Deep Defense.

    Raises:
        UserError: a summary cannot be read.
    """
    named = titles(experiment)
    found: dict[str, dict[int, Row]] = {name: {} for name in named}
    for seed in seeds:
        folders = {name: output / f"seed{seed}" / name / "evaluation" for name in named}
        evaluated = {
            name: runs.read(folder, f"{experiment.title}:{named[name]}")
            for name, folder in folders.items()
            if (folder / "summary.json").exists()
        }
        last = evaluated.get(DEEP_DEFENSE)
        eps_ref = (last.summary.get("fgs") or {}).get("eps_ref") if last else None
        made = table.rows_of(list(evaluated.values()), eps_ref)
        for name, row in zip(evaluated, made, strict=True):
            found[name][seed] = row
    return {name: some for name, some in found.items() if some}


def compared(experiment: Experiment, found: dict[str, dict[int, Row]]) -> str:
    """A Markdown table: the mean over the seeds, the standard deviation, the paper's number."""
    lines: list[Sequence[str]] = []
    named = titles(experiment)
    for name, by_seed in found.items():
        some, paper = list(by_seed.values()), experiment.paper.get(name)
        after_fgs = zip(*(row.after_fgs for row in some), strict=True)
        theirs = paper.after_fgs if paper else (None,) * len(EPS_REF_FRACTIONS)
        lines.append(
            (
                named[name],
                _percent([row.accuracy for row in some], paper and paper.accuracy),
                _cell([row.rho for row in some], paper and paper.rho2, "{:#.3g}", "{:.1g}"),
                *(_percent(*pair) for pair in zip(after_fgs, theirs, strict=True)),
            )
        )
    return markdown_table(_HEAD, lines)


def _percent(values: Iterable[float | None], paper: float | None) -> str:
    known = [100 * value for value in values if value is not None]
    return _cell(known, paper, "{:.2f}", "{:.2f}")


def _cell(values: list[float], paper: float | None, form: str, form_of_spread: str) -> str:
    """mean ± spread (paper)."""
    ours = form.format(statistics.mean(values)) if values else ""
    if len(values) > 1:
        ours += f" ± {form_of_spread.format(statistics.stdev(values))}"
    return ours + (f" ({form.format(paper)})" if paper is not None else "")


def write(
    experiment: Experiment,
    output: Path,
    seeds: Sequence[int],
    units: Sequence[PlannedRun],
    command: str,
    figure: int | None,
) -> Path:
    """Write the table, or the figure asked for, and report.md with where they come from."""
    target = output / "report"
    target.mkdir(exist_ok=True)
    parts = [f"# {experiment.title}", "", *_setting(experiment, output, seeds, command), ""]
    if figure is None:
        parts += _tabled(target, experiment, rows(experiment, output, seeds))
    if figure in (None, 2):
        parts += _by_epoch(target, experiment, output, seeds[0])
    if figure in (3, 4):
        parts += _swept(target, figure, units, seeds[0])
    parts += _times(units)
    page = target / (f"figure{figure}.md" if figure else "report.md")
    with atomic_write(page) as partial:
        partial.write_text("\n".join(parts) + "\n")
    return page


def _setting(experiment: Experiment, output: Path, seeds: Sequence[int], command: str) -> list[str]:
    """The command, the data, the versions."""
    path = next(output.glob(f"seed{seeds[0]}/**/summary.json"))
    summary = runs.read(path.parent).summary
    if "versions" not in summary:  # of an evaluation: its jobs have them
        summary = summary["runs"][-1]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    sizes = data.sizes(output / "data")
    cut = " (a cut of the data set: no reproduction)" if data.is_cut(experiment.data, sizes) else ""
    return [
        f"`{command}`",
        "",
        f"- {sizes[0]:,} images to train on, {sizes[1]:,} to test on{cut}; "
        f"seed(s) {', '.join(map(str, seeds))}",
        f"- configs/{experiment.config}; {versions}; {summary['device']}",
    ]


def _tabled(target: Path, experiment: Experiment, found: dict[str, dict[int, Row]]) -> list[str]:
    text, named = compared(experiment, found), titles(experiment)
    (target / "table.md").write_text(text)
    lines = [
        [named[name], seed, row.accuracy, row.rho, *row.after_fgs, row.eps_ref]
        for name, by_seed in found.items()
        for seed, row in by_seed.items()
    ]
    _write_csv(target / "table.csv", ["method", "seed", *table.COLUMNS], lines)
    return [
        "Mean (± standard deviation over seeds), and in brackets the paper's:",
        "",
        text,
        "Every digit: [table.csv](table.csv)",
        "",
    ]


def _by_epoch(target: Path, experiment: Experiment, output: Path, seed: int) -> list[str]:
    """Figure 2, of one seed's fine-tunings."""
    folder = output / f"seed{seed}"
    tuned = [
        runs.read(folder / name, title)
        for name, title in titles(experiment).items()
        if name != REFERENCE and (folder / name / "summary.json").exists()
    ]
    lines = [
        [each.label, entry["epoch"], entry["accuracy"], entry["rho2"]]
        for each in tuned
        for entry in each.history
    ]
    _write_csv(target / "figure2.csv", ["method", "epoch", "accuracy", "rho2"], lines)
    return _drawn(target, "figure2", f"By epoch, seed {seed}", figures.epochs(tuned))


def _swept(target: Path, number: int, units: Sequence[PlannedRun], seed: int) -> list[str]:
    """Figure 3 or 4, of one seed's fine-tunings."""
    swept = [
        runs.read(unit.folder, unit.folder.name.split(",")[0])
        for unit in units
        if f"/figure{number}/" in unit.name
    ]
    lines = [
        [
            *(each.option(f"regularizer.{name}") for name in ("lam", "c")),
            " ".join(each.option("regularizer.layers")) or "all",
            each.history[-1]["accuracy"],
            each.history[-1]["rho2"],
        ]
        for each in swept
    ]
    name, columns = f"figure{number}", ["lambda", "c", "layers", "accuracy", "rho2"]
    _write_csv(target / f"{name}.csv", columns, lines)
    by = "regularizer.lam" if number == 3 else "label"
    drawn = figures.sweep(swept, by, "regularizer.c")
    return _drawn(target, name, f"Accuracy against rho2, seed {seed}", drawn)


def _drawn(target: Path, name: str, title: str, figure: Any) -> list[str]:
    figures.save(figure, target / name)
    return [f"## {title}", "", f"![{title}]({name}.png)", "", f"[{name}.csv]({name}.csv)", ""]


def _times(units: Sequence[PlannedRun]) -> list[str]:
    """What each unit took on this machine."""
    took = {unit.name: run.elapsed(unit) for unit in units}
    known = {name: seconds for name, seconds in took.items() if seconds is not None}
    if not known:
        return []
    lines = [(name, run.duration(seconds)) for name, seconds in known.items()]
    whole = run.duration(sum(known.values()))
    return [
        "## Time",
        "",
        f"{whole} in all.",
        "",
        *markdown_table(("run", "took"), lines).splitlines(),
    ]


def _write_csv(path: Path, head: list[str], lines: list[list[Any]]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(csv_table(head, lines), newline="")
