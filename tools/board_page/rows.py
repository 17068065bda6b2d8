"""One evaluation as a row of the board: its numbers, curves and ratios.

In: `Run`s of evaluations. Out: `Row`s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.curves import Curve, curves_of, samples_by_method
from pipeline.evaluation.manifest import Identity
from pipeline.evaluation.statistics import Statistics, distance_warnings
from pipeline.evaluation.summary import Summary
from pipeline.reports import compare, pairs, runs, table
from pipeline.reports.evaluation_folders import EvaluationFolder
from pipeline.reports.paired_statistics import Interval, Resampling
from pipeline.reports.pairs import EvaluatedImages
from pipeline.reports.runs import Run
from pipeline.reports.table import RhoByAttack

CURVE_POINTS = 201


@dataclass(frozen=True)
class Versus:
    """A row compared with the reference, image by image."""

    ratio: Interval | None  # rho2 / the reference's; None: not defined
    accuracy_difference: float  # from -1 to 1
    mcnemar_p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluation."""

    name: str
    evaluation_folder: EvaluationFolder
    run: Run
    by_attack: RhoByAttack
    curves: dict[bool, dict[str, Curve]]  # by whether budgets are relative, then by method
    ratios: dict[str, np.ndarray]  # ||dx|| / ||x|| of the images that have one, by method
    is_reference: bool = False
    versus: Versus | None = None
    not_compared: str = ""  # why ``versus`` is None, if a reference was requested

    @property
    def summary(self) -> Summary:
        """The evaluation's summary.json."""
        return self.run.evaluation

    @property
    def statistics(self) -> Statistics:
        """Its numbers."""
        return self.summary.statistics

    @property
    def identity(self) -> Identity:
        """What was evaluated, and how."""
        return self.summary.identity

    @cached_property
    def best_rho(self) -> float | None:
        """rho2 of the smallest known distances; None: no image has one."""
        diagnostics = self.statistics.diagnostics
        return self.statistics.rho if diagnostics is None else diagnostics.best

    @property
    def num_queries(self) -> float | None:
        """Forward passes and gradients of an image; None: not counted."""
        diagnostics = self.statistics.diagnostics
        return None if diagnostics is None else diagnostics.mean_queries

    @property
    def seconds(self) -> float | None:
        """Time of all jobs, one after another; None: a job of an earlier version recorded none."""
        jobs = self.summary.runs
        times = [float(s) for job in jobs if isinstance(s := job.get("seconds"), int | float)]
        return sum(times) if times and len(times) == len(jobs) else None

    @property
    def device(self) -> str:
        """Names of the devices that evaluated."""
        return ", ".join(dict.fromkeys(str(job.get("device", "")) for job in self.summary.runs))

    def notes(self) -> Iterator[str]:
        """What limits the row's numbers."""
        summary = self.summary
        if summary.num_missing:
            yield f"{summary.num_missing} images are missing: not all shards have ended"
        if summary.skipped:
            yield f"{len(summary.skipped)} images did not decode"
        if self.not_compared:
            yield f"not compared with the reference: {self.not_compared}"
        yield from distance_warnings(self.statistics)


def read_row(evaluation_folder: EvaluationFolder, name: str) -> Row | None:
    """The row of an evaluation; None if the folder is a fine-tuning.

    Raises:
        UserError: it cannot be read.
    """
    try:
        run = runs.read(evaluation_folder.folder, name)
        return _row_of(run, evaluation_folder) if run.is_evaluation else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{evaluation_folder.folder} is damaged ({type(error).__name__}: {error}); make its "
            f"files again with tools/report.py merge {evaluation_folder.folder}"
        ) from None


def _row_of(run: Run, evaluation_folder: EvaluationFolder) -> Row:
    samples, protocol = run.samples, run.protocol
    if len(samples) == 0:
        raise UserError(f"{run.folder} contains no results")
    by_attack = table.rows_of([run])[0].by_attack
    assert by_attack is not None, "rows of evaluations have it"
    return Row(
        name=run.label,
        evaluation_folder=evaluation_folder,
        run=run,
        by_attack=by_attack,
        curves={
            relative: curves_of(samples, protocol, relative=relative, max_points=CURVE_POINTS)
            for relative in (False, True)
        },
        ratios={n: part.ratio for n, part in samples_by_method(samples, protocol).items()},
    )


def compare_with(reference: EvaluatedImages, run: Run, resampling: Resampling) -> Versus:
    """Compare an evaluation with the reference, over the images that are in both.

    Raises:
        UserError: they were measured differently.
    """
    common = pairs.pair(reference, pairs.read(run))
    result = compare.compare(common, resampling, 0)
    difference = result.accuracy.b - result.accuracy.a
    return Versus(result.rho.ratio, difference, result.accuracy.mcnemar_p)
