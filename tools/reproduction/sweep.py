"""The points of Figures 3 and 4: lambda by c, and layers by c.

In: the fine-tunings of a sweep, and figureN.csv of an earlier report. Out: a CSV file and a figure.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError
from pipeline.reports import runs, sweep_figure
from pipeline.reports.sweep_figure import SweepPoint
from reproduction.experiments import Experiment
from reproduction.plan import PlannedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL_LAYERS = "all"


class SweepRow(NamedTuple):
    """A fine-tuning, at its end; the names are those of the columns of figureN.csv."""

    seed: int
    lam: float
    c: float
    layers: str  # patterns of regularizer.layers, or `ALL_LAYERS`
    accuracy: float  # from 0 to 1
    rho2: float | None  # None: no image has a ratio

    @property
    def options(self) -> tuple[int, float, float, str]:
        """What distinguishes the runs of a sweep."""
        return self[:4]


def csv_name(number: int) -> str:
    """The name of a figure's CSV file."""
    return f"figure{number}.csv"


def rows_of(planned_runs: Iterable[PlannedRun], number: int) -> list[SweepRow]:
    """The rows of the fine-tunings of Figure ``number``, which have ended.

    Raises:
        UserError: a summary cannot be read.
    """
    rows = []
    for planned in planned_runs:
        if f"/figure{number}/" in planned.name:
            tuned = runs.read(planned.folder)
            after = tuned.finetuning.history[-1]
            layers = " ".join(tuned.option("regularizer.layers")) or ALL_LAYERS
            lam, c = tuned.option("regularizer.lam"), tuned.option("regularizer.c")
            seed = tuned.option("train.seed")
            rows.append(SweepRow(seed, lam, c, layers, after.accuracy, after.rho))
    return rows


def earlier_rows(folder: Path, number: int) -> list[SweepRow]:
    """The rows of an earlier report.

    Raises:
        UserError: the folder has no such figure.
    """
    path = folder / csv_name(number)
    try:
        with path.open(newline="") as file:
            return [
                SweepRow(
                    *(int(row["seed"]), float(row["lam"]), float(row["c"]), row["layers"]),
                    float(row["accuracy"]),
                    float(row["rho2"]) if row["rho2"] else None,
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"--with-report: {path} has no points of a figure ({error})") from None


def merged(new: Sequence[SweepRow], old: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows of both, sorted; of two rows with equal options, the new one."""
    return sorted({row.options: row for row in (*old, *new)}.values())


def draw(experiment: Experiment, rows: Iterable[SweepRow], number: int) -> "Figure":
    """Figure 3 (a line for each lambda) or 4 (a line for each layer)."""
    titles = {pattern: title for title, pattern in experiment.layers}
    points = [
        SweepPoint(
            row.lam if number == 3 else titles.get(row.layers, row.layers),
            *(row.c, row.rho2, row.accuracy),
        )
        for row in rows
    ]
    return sweep_figure.draw(points, "lam" if number == 3 else "", "c")
