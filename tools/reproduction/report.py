"""The report: a table with our numbers and the paper's, the figures, and the commands.

In: runs that have ended. Out: OUTPUT/report/.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.reports import figures, runs, table, table_formats
from pipeline.reports.runs import Run
from pipeline.runtime.files import atomic_write
from pipeline.runtime.text_tables import markdown_table, write_csv
from reproduction import data, earlier, run, sweep
from reproduction import distances as distance_table
from reproduction.cells import mean_and_spread, with_seeds
from reproduction.earlier import RowsBySeed
from reproduction.experiments import DEEP_DEFENSE, EVALUATION, REFERENCE, Experiment
from reproduction.plan import DISTANCE_ITERATIONS, SUMMARY, PlannedRun
from reproduction.recorded import OtherRuns

_HEAD = ("Method", "accuracy, %", "rho2", *(f"@{f:g}" for f in EPS_REF_FRACTIONS))


@dataclass(frozen=True)
class Report:
    """The contents of a report."""

    experiment: Experiment
    output: Path  # folder of all runs
    seeds: Sequence[int]
    planned: Sequence[PlannedRun]
    command: str  # gives the same numbers on another machine
    figure: int | None  # the only figure of the report; None: the table and Figure 2
    earlier: Path | None = None  # folder of a report of other seeds, whose rows are added
    others: OtherRuns = field(default_factory=OtherRuns)  # runs of earlier commands

    @property
    def folder(self) -> Path:
        """The folder of the report."""
        return self.output / "report"

    @property
    def _names(self) -> set[str]:
        """Names of the runs that it shows."""
        return {planned.name for planned in self.planned} | self.others.names

    def write(self) -> Path:
        """Write the table, or the figure, and the page that shows them; returns the page.

        Raises:
            UserError: a summary cannot be read.
        """
        self.folder.mkdir(exist_ok=True)
        lines = [f"# {self.experiment.title}", "", *self._setting(), ""]
        if self.figure is None:
            lines += [*self._table(), *self._distances()]
        if self.figure in (None, 2):
            lines += self._by_epoch()
        if self.figure in (3, 4):
            lines += self._sweep(self.figure)
        lines += _times(self.planned)
        page = self.folder / (f"figure{self.figure}.md" if self.figure else "report.md")
        with atomic_write(page) as partial:
            partial.write_text("\n".join(lines) + "\n")
        return page

    def _setting(self) -> list[str]:
        """Lines with the command, the data and the versions."""
        first = next(planned for planned in self.planned if planned.result == SUMMARY)
        environment = runs.read(first.folder).environment
        versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
        sizes = data.sizes(self.output / "data")
        incomplete = ""
        if data.is_cut(self.experiment.data, sizes):
            incomplete = " (a part of the data set: not a reproduction)"
        seeds = ", ".join(str(seed) for seed in self.seeds)
        lines = [
            f"`{self.command}`",
            "",
            f"- {sizes[0]:,} images to train on, {sizes[1]:,} to test on{incomplete}; "
            f"seed(s) {seeds}",
            f"- configs/{self.experiment.config}; {versions}; {environment['device']}",
        ]
        if self.earlier is not None:
            lines += ["", "The tables also have the rows of an earlier report:", ""]
            lines += earlier.setting(self.earlier)
        if self.others.left_out and self.figure in (None, 2):
            lines += ["", "Left out, because this command would make it with other options:", ""]
            lines += [f"- {net}: {reason}" for net, reason in self.others.left_out.items()]
        return lines

    def _table(self) -> list[str]:
        titles = titles_by_method(self.experiment)
        old: dict[str, RowsBySeed] = {}
        if self.earlier is not None:
            old = earlier.table_rows(self.earlier, self.experiment.title, titles)
        eps_refs = {seed: row.eps_ref for seed, row in old.get(DEEP_DEFENSE, {}).items()}
        own_rows = rows_by_method(self.experiment, self.output, self._names, self.seeds, eps_refs)
        rows = earlier.merged(own_rows, old, titles)
        text = compared(self.experiment, rows)
        (self.folder / "table.md").write_text(text)
        lines = [
            [titles[method], seed, row.accuracy, row.rho, *row.after_fgs, row.eps_ref]
            for method, by_seed in rows.items()
            for seed, row in by_seed.items()
        ]
        write_csv(self.folder / "table.csv", ["method", "seed", *table_formats.COLUMNS], lines)
        note = "Mean (± standard deviation over seeds), and in brackets the paper's:"
        if any(row.eps_ref is None for by_seed in rows.values() for row in by_seed.values()):
            note = (
                "The @ columns need eps_ref of Deep Defense with the same seed: add "
                f"{DEEP_DEFENSE} to --methods, or a report that has it by --with-report. {note}"
            )
        return [
            note,
            "",
            text,
            "Every digit: [table.csv](table.csv)",
            "",
        ]

    def _distances(self) -> list[str]:
        """The table of distances; nothing without --attack."""
        titles = titles_by_method(self.experiment)
        distances = distance_table.distances_by_method(
            [*titles], self.output, self._names, self.seeds
        )
        if self.earlier is not None:
            old = earlier.distances(self.earlier, titles)
            distances = earlier.merged(distances, old, titles)
        if not distances:
            return []
        head = ["method", "seed", *distance_table.columns(distances)]
        rows = [[titles[str(name)], *numbers] for name, *numbers in distance_table.rows(distances)]
        write_csv(self.folder / "distances.csv", head, rows)
        return [
            "## By several attacks",
            "",
            "rho2 by each attack (DeepFool with at most "
            f"{DISTANCE_ITERATIONS} iterations), and by the best of them for each image:",
            "",
            distance_table.markdown(distances, titles),
            "Every digit: [distances.csv](distances.csv)",
            "",
        ]

    def _by_epoch(self) -> list[str]:
        """Figure 2, for the fine-tunings of one seed; nothing without any."""
        seed = self.seeds[0]
        finetunings = [
            runs.read(self.output / f"seed{seed}" / method, title)
            for method, title in titles_by_method(self.experiment).items()
            if method != REFERENCE and f"seed{seed}/{method}" in self._names
        ]
        if not finetunings:
            return []
        lines = [
            [tuned.label, entry.epoch, entry.accuracy, entry.rho]
            for tuned in finetunings
            for entry in tuned.finetuning.history
        ]
        write_csv(self.folder / "figure2.csv", ["method", "epoch", "accuracy", "rho2"], lines)
        return self._figure("figure2", f"By epoch, seed {seed}", figures.epochs(finetunings))

    def _sweep(self, number: int) -> list[str]:
        """Figure 3 or 4: the mean of the seeds at each point."""
        rows = sweep.rows_of(self.planned, number)
        if self.earlier is not None:
            rows = sweep.merged(rows, sweep.earlier_rows(self.earlier, number))
        write_csv(self.folder / sweep.csv_name(number), sweep.SweepRow._fields, rows)
        seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
        title = f"Accuracy against rho2, seed(s) {seeds}"
        return self._figure(f"figure{number}", title, sweep.draw(self.experiment, rows, number))

    def _figure(self, name: str, title: str, figure: Any) -> list[str]:
        figures.save(figure, self.folder / name)
        return [f"## {title}", "", f"![{title}]({name}.png)", "", f"[{name}.csv]({name}.csv)", ""]


def titles_by_method(experiment: Experiment) -> dict[str, str]:
    """Titles of the reference and of each method, in the table's order."""
    return {REFERENCE: "Reference"} | {m.name: m.title for m in experiment.methods}


def rows_by_method(
    experiment: Experiment,
    output: Path,
    names: Container[str],
    seeds: Sequence[int],
    eps_refs: Mapping[int, float | None] = MappingProxyType({}),
) -> dict[str, RowsBySeed]:
    """The table's rows by method and seed. eps_ref is that of Deep Defense with the same seed.

    Args:
        experiment: the experiment.
        output: folder of all runs.
        names: names of the runs that count, in ``output``.
        seeds: seeds of the runs.
        eps_refs: by seed, eps_ref of Deep Defense in an earlier report. It is used where Deep
            Defense was not run; without either, the accuracies after FGS are left out.

    Raises:
        UserError: a summary cannot be read.
    """
    titles = titles_by_method(experiment)
    rows: dict[str, RowsBySeed] = {method: {} for method in titles}
    for seed in seeds:
        runs_of_seed = {method: f"seed{seed}/{method}/{EVALUATION}" for method in titles}
        evaluations = {
            method: runs.read(output / name, f"{experiment.title}:{titles[method]}")
            for method, name in runs_of_seed.items()
            if name in names
        }
        eps_ref = _eps_ref(evaluations, eps_refs.get(seed))
        rows_of_seed = table.rows_of(list(evaluations.values()), eps_ref)
        for method, row in zip(evaluations, rows_of_seed, strict=True):
            rows[method][seed] = row if eps_ref is not None else _without_fgs(row)
    return {method: by_seed for method, by_seed in rows.items() if by_seed}


def _eps_ref(evaluations: Mapping[str, Run], of_earlier: float | None) -> float | None:
    """eps_ref of Deep Defense, of this report or the earlier one; or evaluation.fgs.reference."""
    if DEEP_DEFENSE in evaluations:
        fgs = evaluations[DEEP_DEFENSE].evaluation.statistics.fgs
        return fgs.eps_ref if fgs is not None else None
    if of_earlier is not None:
        return of_earlier
    measured = [run.evaluation.statistics.fgs for run in evaluations.values()]
    return next((fgs.reference for fgs in measured if fgs is not None and fgs.reference), None)


def _without_fgs(row: table.TableRow) -> table.TableRow:
    """The row of a net that has no eps_ref to be measured at."""
    return row._replace(after_fgs=(None,) * len(EPS_REF_FRACTIONS), eps_ref=None)


def compared(experiment: Experiment, rows: dict[str, RowsBySeed]) -> str:
    """A Markdown table: the mean over the seeds, the standard deviation, the paper's number."""
    lines: list[Sequence[str]] = []
    titles = titles_by_method(experiment)
    for method, by_seed in rows.items():
        ours, paper = list(by_seed.values()), experiment.paper.get(method)
        accuracy = _percent([row.accuracy for row in ours], paper.accuracy if paper else None)
        rhos = [row.rho for row in ours if row.rho is not None]
        rho = _cell(rhos, paper.rho2 if paper else None, "{:#.3g}", "{:.1g}")
        papers_after_fgs = paper.after_fgs if paper else (None,) * len(EPS_REF_FRACTIONS)
        ours_after_fgs = zip(*(row.after_fgs for row in ours), strict=True)
        after_fgs = [
            _percent(values, paper_value)
            for values, paper_value in zip(ours_after_fgs, papers_after_fgs, strict=True)
        ]
        lines.append((titles[method], accuracy, rho, *after_fgs))
    return markdown_table(*with_seeds(_HEAD, lines, list(rows.values())))


def _percent(values: Iterable[float | None], paper: float | None) -> str:
    percentages = [100 * value for value in values if value is not None]
    return _cell(percentages, paper, "{:.2f}", "{:.2f}")


def _cell(values: list[float], paper: float | None, form: str, form_of_spread: str) -> str:
    """mean ± standard deviation (paper)."""
    text = mean_and_spread(values, form, form_of_spread)
    if paper is not None:
        text += f" ({form.format(paper)})"
    return text


def _times(planned_runs: Sequence[PlannedRun]) -> list[str]:
    """Lines with the duration of each run on this machine."""
    seconds: dict[str, float] = {}
    for planned in planned_runs:
        elapsed = run.elapsed(planned)
        if elapsed is not None:
            seconds[planned.name] = elapsed
    if not seconds:
        return []
    lines = [(name, run.duration(elapsed)) for name, elapsed in seconds.items()]
    return [
        "## Time",
        "",
        f"{run.duration(sum(seconds.values()))} in all.",
        "",
        *markdown_table(("run", "took"), lines).splitlines(),
    ]
