"""How one evaluation differs from another of the same images.

In: `Pairs`. Out: `Comparison`, as text or as values for JSON.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.errors import first_few

from .paired_statistics import Interval, Resampling, mcnemar, mean_difference, mean_ratio
from .pairs import ImageChange, Pairs, image_changes


@dataclass(frozen=True, kw_only=True)
class RhoComparison:
    """The mean ratio rho, over the images that have a ratio in both evaluations."""

    name: str  # such as rho2
    num_images: int
    num_left_out: int  # without a ratio in at least one evaluation
    a: float
    b: float
    difference: Interval  # b - a
    ratio: Interval | None  # b / a; None: not finite
    resampling: Resampling
    num_unflipped_a: int  # their distances are those that the attack had reached at its end
    num_unflipped_b: int
    num_smaller: int  # images whose distance is smaller in b
    num_equal: int
    num_larger: int


@dataclass(frozen=True, kw_only=True)
class AccuracyComparison:
    """The accuracy, from 0 to 1, over all images that are in both evaluations."""

    a: float
    b: float
    mcnemar_p: float
    only_a_correct: list[str]  # ids
    only_b_correct: list[str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How evaluation b differs from evaluation a."""

    a: str  # labels
    b: str
    num_images: int  # in both
    num_only_in_a: int
    num_only_in_b: int
    num_without_hash: int  # in both, but without a hash of their pixels in at least one
    distance: str  # the method whose distance is compared, or "smallest of A, B, ..."
    rho: RhoComparison
    accuracy: AccuracyComparison
    largest_decreases: list[ImageChange]  # images whose ratio decreased most, the worst first

    def to_dict(self) -> dict[str, Any]:
        """The values for JSON."""
        decreases = [change._asdict() for change in self.largest_decreases]
        return {**asdict(self), "largest_decreases": decreases}


def compare(pairs: Pairs, resampling: Resampling, num_worst: int) -> Comparison:
    """Compare two evaluations.

    Args:
        pairs: their common images.
        resampling: options of the bootstrap intervals.
        num_worst: largest number of images in `Comparison.largest_decreases`.
    """
    decreases = [change for change in image_changes(pairs) if (change.ratio_difference or 0.0) < 0]
    return Comparison(
        a=pairs.labels[0],
        b=pairs.labels[1],
        num_images=len(pairs.ids),
        num_only_in_a=pairs.num_only_in_a,
        num_only_in_b=pairs.num_only_in_b,
        num_without_hash=pairs.num_without_hash,
        distance=pairs.distance,
        rho=_compare_rho(pairs, resampling),
        accuracy=_compare_accuracy(pairs),
        largest_decreases=decreases[:num_worst],
    )


def _compare_rho(pairs: Pairs, resampling: Resampling) -> RhoComparison:
    in_rho = pairs.in_rho
    a, b = (ratio[in_rho] for ratio in pairs.ratios())
    return RhoComparison(
        name=pairs.rho_name,
        num_images=len(a),
        num_left_out=len(in_rho) - len(a),
        a=float(a.mean()),
        b=float(b.mean()),
        difference=mean_difference(a, b, resampling),
        ratio=mean_ratio(a, b, resampling),
        resampling=resampling,
        num_unflipped_a=int(np.sum(~pairs.a.flipped[in_rho])),
        num_unflipped_b=int(np.sum(~pairs.b.flipped[in_rho])),
        num_smaller=int(np.sum(b < a)),
        num_equal=int(np.sum(b == a)),
        num_larger=int(np.sum(b > a)),
    )


def _compare_accuracy(pairs: Pairs) -> AccuracyComparison:
    a, b = pairs.a.correct, pairs.b.correct
    only_a, only_b = pairs.ids[a & ~b].tolist(), pairs.ids[b & ~a].tolist()
    return AccuracyComparison(
        a=float(a.mean()),
        b=float(b.mean()),
        mcnemar_p=mcnemar(len(only_a), len(only_b)),
        only_a_correct=only_a,
        only_b_correct=only_b,
    )


def as_text(result: Comparison) -> str:
    """The comparison in a few lines."""
    a, b = result.a, result.b
    lines = [
        f"{result.num_images} images in both; {result.num_only_in_a} only in {a}, "
        f"{result.num_only_in_b} only in {b}",
        f"distance: {result.distance}",
        *_rho_lines(result.rho, a, b),
        *_accuracy_lines(result.accuracy, a, b),
    ]
    if result.num_without_hash:
        lines.append(
            f"pixels of {result.num_without_hash} images were not compared: results of earlier "
            "versions have no hash of them"
        )
    if result.largest_decreases:
        lines.append(f"images whose distance decreased most, {a} -> {b}:")
    for image in result.largest_decreases:
        lines.append(f"  {image.id}: {image.ratio_a:.4g} -> {image.ratio_b:.4g}")
    return "\n".join(lines)


def _rho_lines(rho: RhoComparison, a: str, b: str) -> list[str]:
    options = rho.resampling
    ratio = "not defined" if rho.ratio is None else _interval(rho.ratio)
    return [
        f"{rho.name} over {rho.num_images} of them ({rho.num_left_out} have no ratio in one or "
        f"both): {a} {rho.a:.4g}, {b} {rho.b:.4g}",
        f"  difference {_interval(rho.difference)}, ratio {ratio} ({100 * options.level:g} % "
        f"bootstrap intervals, {options.num_resamples} resamples, seed {options.seed})",
        f"  distance in {b}: smaller for {rho.num_smaller} images, larger for {rho.num_larger}, "
        f"equal for {rho.num_equal}; never flipped: {a} {rho.num_unflipped_a}, {b} "
        f"{rho.num_unflipped_b}",
    ]


def _accuracy_lines(accuracy: AccuracyComparison, a: str, b: str) -> list[str]:
    return [
        f"accuracy: {a} {accuracy.a:.2%}, {b} {accuracy.b:.2%}, difference "
        f"{100 * (accuracy.b - accuracy.a):+.2f} points, McNemar's p {accuracy.mcnemar_p:.3g}",
        f"  correct only in {a}: {_count(accuracy.only_a_correct)}",
        f"  correct only in {b}: {_count(accuracy.only_b_correct)}",
    ]


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _count(ids: list[str]) -> str:
    return f"{len(ids)} ({first_few(ids, 3)})" if ids else "0"
