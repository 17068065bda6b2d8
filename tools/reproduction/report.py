"""The table with the paper's numbers beside ours, the figures, and where they come from.

In: units that are done. Out: OUTPUT/report/.
"""

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.atomic import replacing
from pipeline.config import EPS_REF_FRACTIONS
from pipeline.reports import figures, runs, table
from pipeline.reports.table import Row
from reproduction import data, run
from reproduction.experiments import DEEP_DEFENSE, REFERENCE, Experiment
from reproduction.plan import Unit

_HEAD = ("Method", "accuracy, %", "rho2", *(f"@{f:g}" for f in EPS_REF_FRACTIONS))


def titles(experiment: Experiment) -> dict[str, str]:
    """Of the reference and of each method, by name, in the table's order."""
    return {REFERENCE: "Reference"} | {m.name: m.title for m in experiment.methods}


def rows(experiment: Experiment, output: Path, seeds: Sequence[int]) -> dict[str, list[Row]]:
    """A row for each seed, by the method's name, read at the eps_ref of that seed's Deep Defense.

    Raises:
        UserError: a summary cannot be read.
    """
    found: dict[str, list[Row]] = {}
    for seed in seeds:
        evaluated = {
            name: runs.read(f"{experiment.title}:{title}={folder}")
            for name, title in titles(experiment).items()
            if ((folder := output / f"seed{seed}" / name / "evaluation") / "summary.json").exists()
        }
        last = evaluated.get(DEEP_DEFENSE)
        eps_ref = last.summary["fgs"]["eps_ref"] if last else None
        made = table.rows_of(list(evaluated.values()), eps_ref)
        for name, row in zip(evaluated, made, strict=True):
            found.setdefault(name, []).append(row)
    return found


def compared(experiment: Experiment, found: dict[str, list[Row]]) -> str:
    """A Markdown table: the mean over the seeds, the standard deviation, the paper's number."""
    lines = [_HEAD, ("---", *("---:",) * (len(_HEAD) - 1))]
    named = titles(experiment)
    for name, some in found.items():
        paper = experiment.paper.get(name)
        lines.append(
            (
                named[name],
                _cell([100 * row.accuracy for row in some], paper and paper.accuracy, "{:.2f}"),
                _cell([row.rho for row in some], paper and paper.rho2, "{:.3g}"),
                *(
                    _cell(
                        [
                            100 * row.after_fgs[place]
                            for row in some
                            if row.after_fgs[place] is not None
                        ],
                        paper and paper.after_fgs[place],
                        "{:.2f}",
                    )
                    for place in range(len(EPS_REF_FRACTIONS))
                ),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(values: list[float], paper: float | None, form: str) -> str:
    """mean ± spread (paper)."""
    ours = form.format(statistics.mean(values)) if values else ""
    if len(values) > 1:
        ours += f" ± {form.format(statistics.stdev(values))}"
    return ours + (f" ({form.format(paper)})" if paper is not None else "")


def write(
    experiment: Experiment,
    output: Path,
    seeds: Sequence[int],
    units: Sequence[Unit],
    command: str,
    figure: int | None,
) -> Path:
    """Write the table, or the figure asked for, and report.md with where they come from."""
    target = output / "report"
    target.mkdir(exist_ok=True)
    parts = [f"# {experiment.title}", "", *_setting(experiment, output, seeds, command), ""]
    if figure is None:
        found = rows(experiment, output, seeds)
        (target / "table.md").write_text(compared(experiment, found))
        _write_csv(target / "table.csv", seeds, found, titles(experiment))
        parts += ["Mean (± standard deviation over seeds), and in brackets the paper's:", ""]
        parts += [compared(experiment, found), "Every digit: [table.csv](table.csv)", ""]
    if figure in (None, 2):
        tuned = [
            runs.read(f"{title}={folder}")
            for name, title in titles(experiment).items()
            if name != REFERENCE
            and ((folder := output / f"seed{seeds[0]}" / name) / "summary.json").exists()
        ]
        parts += _drawn(target, "figure2", f"By epoch, seed {seeds[0]}", figures.epochs(tuned))
        _write_histories(target / "figure2.csv", tuned)
    if figure in (3, 4):
        by = "regularizer.lam" if figure == 3 else "label"
        swept = [
            runs.read(f"{unit.folder.name.split(',')[0]}={unit.folder}")
            for unit in units
            if f"/figure{figure}/" in unit.name
        ]
        drawn = figures.sweep(swept, by, "regularizer.c")
        parts += _drawn(target, f"figure{figure}", f"Accuracy against rho2, seed {seeds[0]}", drawn)
        _write_sweep(target / f"figure{figure}.csv", swept)
    parts += _times(units)
    page = target / (f"figure{figure}.md" if figure else "report.md")
    with replacing(page) as partial:
        partial.write_text("\n".join(parts) + "\n")
    return page


def _setting(experiment: Experiment, output: Path, seeds: Sequence[int], command: str) -> list[str]:
    """The command, the data, the versions."""
    summary = json.loads(next(output.glob(f"seed{seeds[0]}/**/summary.json")).read_text())
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


def _drawn(target: Path, name: str, title: str, figure: Any) -> list[str]:
    figures.save(figure, target / name)
    return [f"## {title}", "", f"![{title}]({name}.png)", "", f"[{name}.csv]({name}.csv)", ""]


def _times(units: Sequence[Unit]) -> list[str]:
    """What each unit took on this machine."""
    took = {unit.name: run.elapsed(unit) for unit in units}
    known = {name: seconds for name, seconds in took.items() if seconds is not None}
    if not known:
        return []
    lines = [f"| {name} | {run.duration(seconds)} |" for name, seconds in known.items()]
    whole = run.duration(sum(known.values()))
    return ["## Time", "", f"{whole} in all.", "", "| run | took |", "| --- | ---: |", *lines]


def _write_csv(
    path: Path, seeds: Sequence[int], found: dict[str, list[Row]], named: dict[str, str]
) -> None:
    lines = [
        [named[name], seed, row.accuracy, row.rho, *row.after_fgs, row.eps_ref]
        for name, some in found.items()
        for seed, row in zip(seeds, some, strict=False)
    ]
    _lines(path, ["method", "seed", *table.COLUMNS], lines)


def _write_histories(path: Path, tuned: Sequence[runs.Run]) -> None:
    lines = [
        [each.label, entry["epoch"], entry["accuracy"], entry["rho2"]]
        for each in tuned
        for entry in each.history
    ]
    _lines(path, ["method", "epoch", "accuracy", "rho2"], lines)


def _write_sweep(path: Path, swept: Sequence[runs.Run]) -> None:
    lines = [
        [
            *(each.option(f"regularizer.{name}") for name in ("lam", "c")),
            " ".join(each.option("regularizer.layers")) or "all",
            each.history[-1]["accuracy"],
            each.history[-1]["rho2"],
        ]
        for each in swept
    ]
    _lines(path, ["lambda", "c", "layers", "accuracy", "rho2"], lines)


def _lines(path: Path, head: list[str], lines: list[list[Any]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *lines])
