"""Figures of runs: by epoch (the paper's Figure 2), ratios, accuracy under budgets, sheets.

In: `Run`s. Out: matplotlib figures, saved as PNG and SVG. `sweep_figure` has Figures 3 and 4.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.contact_sheet import draw_stored
from pipeline.evaluation.curves import (
    FILES,
    LINE_STYLES,
    Curve,
    curves_of,
    draw_panel,
    label_panel,
)
from pipeline.evaluation.shard_results import ResultsFolder
from pipeline.runtime.files import atomic_write, writable

from .axes import STYLES, add_legend, label_axes, new_figure, rho_of_all, tex
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 40
_MAX_LABELS_IN_AXIS = 4  # more of them go below the figure


def epochs(runs: list[Run]) -> "Figure":
    """Accuracy and rho2 after each epoch of fine-tuning (Figure 2)."""
    figure, (left, right) = new_figure(2)
    rho = rho_of_all(runs)
    for run, style in zip(runs, cycle(STYLES), strict=False):
        history = run.finetuning.history
        epoch = [entry.epoch for entry in history]
        accuracy = [100 * entry.accuracy for entry in history]
        left.plot(epoch, accuracy, label=run.label, gid=f"accuracy: {run.label}", **style)
        rhos = np.array([entry.rho for entry in history], float)  # NaN, which is a gap, for None
        right.plot(epoch, rhos, label=run.label, gid=f"{rho}: {run.label}", **style)
    label_axes(left, "epoch", "accuracy, %")
    label_axes(right, "epoch", tex(rho))
    _add_legend(figure, left)
    return figure


def _add_legend(figure: "Figure", axis: "Axes") -> None:
    """Name the lines of an axis in it, or below the figure if there are many."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > _MAX_LABELS_IN_AXIS:
        figure.set_figheight(figure.get_figheight() + 0.7)
        add_legend(figure, handles, labels, loc="outside lower center", ncols=4)
    else:
        add_legend(axis)


def ratios(runs: list[Run]) -> "Figure":
    """The distribution of ||dx|| / ||x|| over the images of each evaluation, and its median.

    The first bin includes all smaller ratios, so that a few tiny values do not stretch the axis.

    Raises:
        UserError: a run is no evaluation or has no ratio, or their norms or spaces differ.
    """
    _check_one_axis(runs)
    figure, (axis,) = new_figure(1)
    ratios_of_runs = [run.samples.ratio for run in runs]
    for run, ratio in zip(runs, ratios_of_runs, strict=True):
        if len(ratio) == 0:
            raise UserError(f"no image of {run.folder} has a ratio; leave it out of the figure")
    edges = ratio_edges(ratios_of_runs)
    if edges is None:
        raise UserError(f"no image of {runs[0].folder} was perturbed; there is nothing to draw")
    for run, ratio, line_style in zip(runs, ratios_of_runs, cycle(STYLES), strict=False):
        share = 100 * share_of_bins(ratio, edges)
        style = {key: line_style[key] for key in ("color", "linestyle")}
        median = float(np.median(ratio))
        name = f"{run.label} (median {median:.3g})"
        axis.stairs(share, edges, label=name, gid=f"ratios: {run.label}", linewidth=1.4, **style)
        axis.axvline(median, linewidth=0.8, gid=f"median: {run.label}", **style)
    axis.set_xscale("log")
    label_axes(axis, r"$\|\Delta x\| \; / \; \|x\|$", "images, %")
    add_legend(axis)
    return figure


def ratio_edges(ratios_of_runs: Sequence[np.ndarray]) -> np.ndarray | None:
    """Edges (B + 1,) of logarithmic bins for the ratios of several evaluations; None if no ratio
    is above zero."""
    positive = np.concatenate([ratio[ratio > 0] for ratio in ratios_of_runs])
    if len(positive) == 0:
        return None
    return np.geomspace(np.quantile(positive, 0.005), positive.max(), _BINS + 1)


def share_of_bins(ratio: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share (B,) of at least one ratio in each bin, from 0 to 1; the first bin includes all
    smaller ratios, the last one all larger."""
    return np.histogram(ratio.clip(edges[0], edges[-1]), edges)[0] / len(ratio)


def curves(runs: list[Run]) -> "Figure":
    """The accuracy of each evaluation under every budget, absolute to the left, relative to the
    right; of several methods, a line for the smallest distance and for each method.

    Raises:
        UserError: a run is no evaluation, or their norms or spaces differ.
    """
    _check_one_axis(runs)
    figure, axes = new_figure(2)
    for relative, axis in zip(FILES, axes, strict=True):
        label_panel(axis, runs[0].protocol.norm, relative=relative)
        draw_panel(axis, _styled_curves(runs, relative=relative))
    _add_legend(figure, axes[0])
    return figure


def _check_one_axis(runs: list[Run]) -> None:
    """Refuse runs whose distances cannot be on one axis."""
    rho_of_all(runs)
    for run in runs:
        if run.protocol.space != runs[0].protocol.space:
            raise UserError(
                f"{run.folder} measures in {run.protocol.space}, and {runs[0].folder} in "
                f"{runs[0].protocol.space}: distances on one axis need one evaluation.space"
            )


def _styled_curves(runs: list[Run], *, relative: bool) -> dict[str, tuple[Curve, dict[str, Any]]]:
    """The curves of evaluations by label, each with its style.

    If an evaluation has several curves, dashes show the method and colours the run; of a single
    run, both show the method.
    """
    by_run = [curves_of(run.samples, run.protocol, relative=relative) for run in runs]
    names = list(dict.fromkeys(name for lines in by_run for name in lines))
    has_several = any(len(lines) > 1 for lines in by_run)
    styled = {}
    for number, (run, lines) in enumerate(zip(runs, by_run, strict=True)):
        for name, line in lines.items():
            style = {
                "color": _line_style(names.index(name) if len(runs) == 1 else number)["color"],
                "linestyle": _line_style(names.index(name) if has_several else number)["linestyle"],
            }
            styled[_label_of_curve(run, runs, line, name if has_several else "")] = (line, style)
    return styled


def _line_style(number: int) -> dict[str, Any]:
    return LINE_STYLES[number % len(LINE_STYLES)]


def _label_of_curve(run: Run, runs: list[Run], line: Curve, method: str) -> str:
    """The run's label, or its folder where labels are equal; with the method, and the number of
    images that no budget misclassifies."""
    is_unique = [other.label for other in runs].count(run.label) == 1
    name = run.label if is_unique else str(run.folder)
    name += f", {method}" if method else ""
    return f"{name} ({line.num_unbounded} never flipped)" if line.num_unbounded else name


def stored_sheet(run: Run) -> "Figure | None":
    """As `sheet`; None if the evaluation has stored no perturbations."""
    return draw_stored(run.folder, ResultsFolder(run.folder / "results").read().manifest)


def sheet(run: Run) -> "Figure":
    """Images, perturbations and perturbed images of an evaluation, with classes.

    Raises:
        UserError: the evaluation has stored no perturbations.
    """
    figure = stored_sheet(run)
    if figure is None:
        raise UserError(
            f"{run.folder} has no stored perturbations; evaluate with --num_examples above 0"
        )
    return figure


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg.

    Raises:
        UserError: they cannot be written.
    """
    from matplotlib import rc_context

    if not stem.name:
        raise UserError(f"cannot write {stem}: it is a folder; give another --out")
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "deep defense"}):
        for path in paths:
            # Without the date, equal figures are equal files.
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            with writable(path), atomic_write(path) as partial:
                figure.savefig(partial, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths
