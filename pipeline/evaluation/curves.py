"""Accuracy under every budget of the perturbation, exactly, from the distance of each image.

In: the distances ||dx||_p of one evaluation by one attack. Out: `Curve`, its CSV files, its figure.

An adversary with the budget eps changes the class of an image if and only if its smallest
perturbation is at most eps. So the accuracy under the budget eps is the share of the images that
are classified correctly and whose distance exceeds eps: the curve of accuracy against budget of
Dong et al., Benchmarking Adversarial Robustness, CVPR 2020. An attack measures an upper bound of
the smallest distance, so the curve is an upper bound of the accuracy under the best attack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.samples import Samples
from pipeline.runtime.text_tables import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 1000
FILES = {False: "curve.csv", True: "curve_relative.csv"}  # by whether the budget is relative
_DRAWN_SHARE = 0.01  # a panel ends where fewer of the images would still change their class


@dataclass(frozen=True)
class Curve:
    """Robust images at M budgets; exact at each of them, and constant between all breakpoints."""

    budget: np.ndarray  # (M,) float64, ascending from 0
    num_robust: np.ndarray  # (M,) int64, correct images whose distance exceeds the budget
    num_images: int

    @property
    def accuracy(self) -> np.ndarray:
        """(M,) float64, from 0 to 1."""
        return self.num_robust / self.num_images

    @property
    def num_unbounded(self) -> int:
        """Correct images that no budget misclassifies: never flipped, or without a gradient."""
        return int(self.num_robust[-1])


def distances(samples: Samples, *, relative: bool = False) -> np.ndarray:
    """The distance (N,) of each image to another class, as the curve counts it.

    Args:
        samples: results of N images.
        relative: ||dx||_p / ||x||_p instead of ||dx||_p.

    Returns:
        0 for an image that is misclassified or has numbers that are not finite, infinity for a
        correct one that was never flipped or had no gradient; if relative, also for a correct image
        of norm zero, which no relative budget changes. Others in the space of the evaluation.
    """
    distance = samples.perturbation_norm.copy()
    if relative:
        has_norm = samples.image_norm > 0
        distance[has_norm] /= samples.image_norm[has_norm]
        distance[~has_norm] = np.inf
    distance[~samples.flipped | samples.stuck] = np.inf
    distance[~correct_images(samples)] = 0.0
    return distance


def correct_images(samples: Samples) -> np.ndarray:
    """(N,) bool: classified correctly, and all numbers of the image are finite."""
    return samples.correct & ~samples.nonfinite


def accuracy_under(
    distance: np.ndarray, correct: np.ndarray, eps: float | np.ndarray
) -> np.ndarray:
    """The share of images that are correct and whose distance exceeds ``eps``.

    Args:
        distance: (N,) distance of each of at least one image; of one attack, or the smallest of
            several. NaN counts as 0.
        correct: (N,) bool.
        eps: budgets of any shape, in the units of ``distance``.

    Returns:
        Accuracies from 0 to 1, in the shape of ``eps``.
    """
    return _num_robust(distance, correct, eps) / len(distance)


def curve(distance: np.ndarray, correct: np.ndarray, max_points: int = MAX_POINTS) -> Curve:
    """The accuracy at every breakpoint, or at most ``max_points`` of them.

    Args:
        distance: (N,) as in `accuracy_under`.
        correct: (N,) bool.
        max_points: at least 2. Of more breakpoints, those at evenly spaced quantiles are kept, with
            0 and the largest finite distance.
    """
    finite = distance[correct & np.isfinite(distance)]
    budget = np.unique(np.concatenate([[0.0], finite]))
    if len(budget) > max_points:
        positions = np.linspace(0, len(budget) - 1, max_points).round().astype(np.int64)
        budget = budget[positions]
    return Curve(budget, _num_robust(distance, correct, budget), len(distance))


def curve_of(samples: Samples, *, relative: bool = False) -> Curve:
    """The curve of an evaluation of at least one image."""
    return curve(distances(samples, relative=relative), correct_images(samples))


def write(folder: Path, samples: Samples) -> None:
    """Write curve.csv and curve_relative.csv: budget, accuracy from 0 to 1, number of images."""
    for relative, name in FILES.items():
        line = curve_of(samples, relative=relative)
        columns = (line.budget, line.accuracy, line.num_robust)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        write_csv(folder / name, ["budget", "accuracy", "num_robust"], rows)


def draw(samples: Samples, norm: str) -> "Figure":
    """A figure of an evaluation: absolute budgets to the left, relative ones to the right.

    Args:
        samples: at least one image.
        norm: p of the norm, such as 2 or inf.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing it takes 0.3 s
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for relative, axis in zip(FILES, figure.subplots(1, 2), strict=True):
        line = curve_of(samples, relative=relative)
        label_panel(axis, norm, relative=relative)
        draw_panel(axis, {_counts(line): (line, {"color": "#000000"})})
        axis.legend(fontsize=8)
    return figure


def _counts(line: Curve) -> str:
    return f"{line.num_images} images, {line.num_unbounded} robust at every budget"


def draw_panel(axis: "Axes", lines: Mapping[str, tuple[Curve, Mapping[str, Any]]]) -> None:
    """Draw curves by their label, each with a matplotlib style, in percent.

    The panel ends where hardly any image is left to lose: single distances may be far larger.
    """
    right = max(_drawn_until(line) for line, _ in lines.values())
    for label, (line, style) in lines.items():
        inside = line.budget <= right
        budget = np.append(line.budget[inside], right)
        percent = 100 * line.accuracy[inside]
        percent = np.append(percent, percent[-1])
        axis.plot(
            budget, percent, drawstyle="steps-post", label=label, gid=f"curve: {label}", **style
        )
    axis.set_xlim(0, right)
    axis.set_ylim(bottom=0)


def label_panel(axis: "Axes", norm: str, *, relative: bool) -> None:
    """Name the axes of a panel."""
    p = norm.replace("inf", r"\infty")
    budget = rf"\|\Delta x\|_{{{p}}}"
    ratio = rf"{budget} \; / \; \|x\|_{{{p}}}"
    axis.set_xlabel(f"budget ${ratio if relative else budget}$")
    axis.set_ylabel("accuracy, %")
    axis.grid(linewidth=0.4, alpha=0.5)


def _drawn_until(line: Curve) -> float:
    left = line.num_robust - line.num_unbounded
    budget = float(line.budget[np.argmax(left <= _DRAWN_SHARE * line.num_images)])
    return 1.05 * budget if budget > 0 else float(line.budget[-1]) or 1.0


def _num_robust(distance: np.ndarray, correct: np.ndarray, eps: float | np.ndarray) -> np.ndarray:
    sorted_distance = np.sort(distance[correct & ~np.isnan(distance)])
    return len(sorted_distance) - np.searchsorted(sorted_distance, eps, side="right")
