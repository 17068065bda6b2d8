"""Accuracy under every budget of the perturbation, exactly, from the distance of each image.

In: the distances ||dx||_p of one evaluation, by one attack or several. Out: `Curve`s, their CSV
files, their figure.

An adversary with the budget eps changes the class of an image if and only if its smallest
perturbation is at most eps. So the accuracy under the budget eps is the share of the images that
are classified correctly and whose distance exceeds eps: the curve of accuracy against budget of
Dong et al., Benchmarking Adversarial Robustness, CVPR 2020. An attack measures an upper bound of
the smallest distance, so the curve is an upper bound of the accuracy under the best attack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.samples import Samples
from pipeline.runtime.text_tables import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 1000
BEST = "best"  # name of the curve of the smallest distance by several methods
FILES = {False: "curve.csv", True: "curve_relative.csv"}  # by whether the budget is relative
# Colours of Okabe and Ito that also differ in lightness.
LINE_STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "linestyle": "-"},
    {"color": "#d55e00", "linestyle": "--"},
    {"color": "#56b4e9", "linestyle": "-."},
    {"color": "#009e73", "linestyle": ":"},
    {"color": "#cc79a7", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#666666", "linestyle": (0, (1, 3))},
    {"color": "#0072b2", "linestyle": (0, (7, 2))},
    {"color": "#e69f00", "linestyle": (0, (3, 1, 1, 1))},
]
_DRAWN_SHARE = 0.01  # a panel ends where fewer of the images would still change their class


@dataclass(frozen=True)
class Curve:
    """Robust images at B budgets; exact at each of them, and constant between all breakpoints."""

    budget: np.ndarray  # (B,) float64, ascending from 0
    num_robust: np.ndarray  # (B,) int64, correct images whose distance exceeds the budget
    num_images: int

    @property
    def accuracy(self) -> np.ndarray:
        """(B,) float64, from 0 to 1."""
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


def breakpoints(distance: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """The budgets (B,) at which curves of these distances change, ascending from 0.

    Args:
        distance: distances of correct images, of any shape; by one method or several.
        max_points: at least 2. Of more breakpoints, those at evenly spaced quantiles are kept, with
            0 and the largest finite distance.
    """
    budget = np.unique(np.append(distance[np.isfinite(distance)], 0.0))
    if len(budget) > max_points:
        positions = np.linspace(0, len(budget) - 1, max_points).round().astype(np.int64)
        budget = budget[positions]
    return budget


def curve(distance: np.ndarray, correct: np.ndarray, budget: np.ndarray | None = None) -> Curve:
    """The accuracy at each budget.

    Args:
        distance: (N,) as in `accuracy_under`.
        correct: (N,) bool.
        budget: (B,) ascending, up to the largest finite distance; None: the curve's breakpoints.
    """
    budget = breakpoints(distance[correct]) if budget is None else budget
    return Curve(budget, _num_robust(distance, correct, budget), len(distance))


def curves_of(
    samples: Samples, protocol: Protocol, *, relative: bool = False, max_points: int = MAX_POINTS
) -> dict[str, Curve]:
    """The curve of an evaluation; of several methods, that of the smallest distance and of each.

    Args:
        samples: results of at least one image.
        protocol: how they were measured.
        relative: whether budgets are relative to the image's norm.
        max_points: largest number of budgets, as in `breakpoints`.

    Returns:
        The method's curve by its name, or that of all by `BEST` and then those of each method. All
        have the same budgets, and each is exact at all of them.
    """
    correct = correct_images(samples)
    parts = samples_by_method(samples, protocol)
    distance = {name: distances(part, relative=relative) for name, part in parts.items()}
    all_distances = np.concatenate([column[correct] for column in distance.values()])
    budget = breakpoints(all_distances, max_points)
    return {name: curve(column, correct, budget) for name, column in distance.items()}


def samples_by_method(samples: Samples, protocol: Protocol) -> dict[str, Samples]:
    """The results by the only method's name; of several methods, those of the smallest distance
    by `BEST`, and then those with the distances of each method."""
    names = protocol.method_names
    if not protocol.num_distances:
        return {names[0]: samples}
    return {BEST: samples} | {name: samples.of_method(k) for k, name in enumerate(names)}


def write(folder: Path, samples: Samples, protocol: Protocol) -> None:
    """Write curve.csv and curve_relative.csv: budget, accuracy from 0 to 1, number of images.

    Of several methods these are of the smallest distance, and a column accuracy_NAME follows for
    each method.
    """
    for relative, file_name in FILES.items():
        lines = curves_of(samples, protocol, relative=relative)
        first = next(iter(lines.values()))
        columns = {
            "budget": first.budget,
            "accuracy": first.accuracy,
            "num_robust": first.num_robust,
            **{f"accuracy_{name}": line.accuracy for name, line in list(lines.items())[1:]},
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        write_csv(folder / file_name, list(columns), rows)


def draw(samples: Samples, protocol: Protocol) -> "Figure":
    """A figure of an evaluation: absolute budgets to the left, relative ones to the right.

    Args:
        samples: at least one image.
        protocol: how they were measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing it takes 0.3 s
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for relative, axis in zip(FILES, figure.subplots(1, 2), strict=True):
        lines = curves_of(samples, protocol, relative=relative)
        label_panel(axis, protocol.norm, relative=relative)
        by_label = {
            _label(name, line, len(lines)): (line, style)
            for (name, line), style in zip(lines.items(), cycle(LINE_STYLES), strict=False)
        }
        draw_panel(axis, by_label)
        axis.legend(fontsize=8)
    return figure


def _label(name: str, line: Curve, num_lines: int) -> str:
    start = f"{line.num_images} images," if num_lines == 1 else f"{name}:"
    return f"{start} {line.num_unbounded} robust at every budget"


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
