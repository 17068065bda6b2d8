"""Accuracy against rho2 over a sweep of options (the paper's Figures 3 and 4).

In: `SweepPoint`s, or the `Run`s of a sweep. Out: a matplotlib figure. Runs that differ in their
seed only are one point: their mean, with the standard deviation as error bars.
"""

from collections.abc import Iterable
from itertools import cycle
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from .axes import STYLES, add_legend, label_axes, new_figure, rho_of_all, tex
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class SweepPoint(NamedTuple):
    """The result of one run of a sweep."""

    line: Any  # what names its line: a value of an option, or a label
    along: Any  # a value of the option that varies along a line
    rho: float | None  # None: no image has a ratio; the figure leaves the run out
    accuracy: float  # from 0 to 1


class _Mean(NamedTuple):
    """The mean of the runs at one point of a line; standard deviations are 0 for one run."""

    along: Any
    rho: float
    accuracy: float  # %
    rho_spread: float
    accuracy_spread: float


def sweep(runs: list[Run], by: str, along: str) -> "Figure":
    """Accuracy against rho2 over a sweep of an option, a line for each value of another.

    Args:
        runs: runs of finetune.py.
        by: option with a line for each of its values (regularizer.lam: Figure 3), or ``label``
            (with the regularised layer as the label: Figure 4).
        along: option whose values are the points of a line; they are written beside the points
            where there is room.

    Raises:
        UserError: a run has no such option, or their norms differ.
    """
    rho = rho_of_all(runs)
    points = [point_of(run, by, along) for run in runs]
    name = "" if by == "label" else by.split(".")[-1]
    return draw(points, name, along.split(".")[-1], rho)


def point_of(run: Run, by: str, along: str) -> SweepPoint:
    """The point of a fine-tuning, at its end; ``by`` and ``along`` as for `sweep`.

    Raises:
        UserError: the run has no such option.
    """
    after = run.finetuning.history[-1]
    line = run.label if by == "label" else _hashable(run.option(by))
    return SweepPoint(line, _hashable(run.option(along)), after.rho, after.accuracy)


def draw(points: Iterable[SweepPoint], by: str, along: str, rho: str = "rho2") -> "Figure":
    """The figure of some points.

    Args:
        points: in any order; those with equal ``line`` and ``along`` are averaged.
        by: short name of the option that has a value for each line, such as lam; empty if the
            lines have names.
        along: short name of the option that varies along a line.
        rho: name of the mean ratio.
    """
    figure, (axis,) = new_figure(1)
    lines = _means(points)
    for (line, means), style in zip(lines.items(), cycle(STYLES), strict=False):
        _draw_line(axis, f"{by} {_text(line)}" if by else str(line), means, style)
    label_axes(axis, tex(rho), "accuracy, %")
    add_legend(axis, title=f"along a line: {along}", title_fontsize=7)
    _remove_overlapping(figure, axis)
    return figure


def _means(points: Iterable[SweepPoint]) -> dict[Any, list[_Mean]]:
    """The points of each line, sorted by what varies along it."""
    groups: dict[tuple[Any, Any], list[tuple[float, float]]] = {}
    for point in points:
        if point.rho is not None:
            groups.setdefault((point.line, point.along), []).append((point.rho, point.accuracy))
    lines: dict[Any, list[_Mean]] = {}
    for (line, along), same in sorted(groups.items(), key=lambda group: _order(*group[0])):
        rhos = [rho for rho, _ in same]
        accuracies = [100 * accuracy for _, accuracy in same]
        spreads = [stdev(values) if len(same) > 1 else 0.0 for values in (rhos, accuracies)]
        lines.setdefault(line, []).append(_Mean(along, mean(rhos), mean(accuracies), *spreads))
    return lines


def _order(*values: Any) -> list[tuple[bool, Any]]:
    """A key that sorts numbers before texts such as auto, which cannot be compared."""
    numbers = (isinstance(value, int | float) for value in values)
    return [(not is_number, value) for is_number, value in zip(numbers, values, strict=True)]


def _draw_line(axis: "Axes", name: str, means: list[_Mean], style: dict[str, Any]) -> None:
    along, x, y, x_spread, y_spread = zip(*means, strict=True)
    if any(x_spread):
        bars = {"color": style["color"], "linewidth": 0.7, "capsize": 1.5}
        axis.errorbar(x, y, xerr=x_spread, yerr=y_spread, fmt="none", zorder=1, **bars)
    axis.plot(x, y, label=name, gid=f"line: {name}", **style)
    marked = list(zip(along, x, y, strict=True))
    ends = marked[:: max(1, len(marked) - 1)]  # first: `_remove_overlapping` keeps earlier ones
    for value, *position in [*ends, *marked[1:-1]]:
        axis.annotate(
            _text(value),
            (position[0], position[1]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )


def _remove_overlapping(figure: "Figure", axis: "Axes") -> None:
    """Remove each text that overlaps an earlier one."""
    figure.draw_without_rendering()  # computes the texts' positions
    kept = []
    for text in list(axis.texts):
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(box)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)
