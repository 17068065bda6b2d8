"""The axes and line styles that the figures of runs share.

Lines differ in dashes and markers as well as in colour, so that they can be distinguished in
greyscale.
"""

from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.evaluation.curves import LINE_STYLES

from .runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = [
    {**style, "marker": marker} for style, marker in zip(LINE_STYLES, "os^DvxP*", strict=True)
]


def new_figure(count: int) -> "tuple[Figure, list[Axes]]":
    """A figure with ``count`` axes in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing it takes 0.3 s
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def label_axes(axis: "Axes", x: str, y: str) -> None:
    """Name both directions of an axis, and draw its grid."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(linewidth=0.4, alpha=0.5)


def add_legend(owner: "Axes | Figure", *names: Any, **options: Any) -> None:
    """Add a legend, as ``owner.legend``, in which a $ in a label is a $ and no formula."""
    for text in owner.legend(*names, fontsize=8, **options).get_texts():
        text.set_parse_math(False)


def rho_of_all(runs: list[Run]) -> str:
    """The name of the mean ratio, which must be the same in all runs.

    Raises:
        UserError: their norms differ.
    """
    names = [run.protocol.rho_name for run in runs]
    for run, name in zip(runs, names, strict=True):
        if name != names[0]:
            raise UserError(
                f"{run.folder} measures {name}, and {runs[0].folder} {names[0]}: a figure needs "
                "runs of one norm"
            )
    return names[0]


def tex(rho: str) -> str:
    """The name of a mean ratio, such as rho2 or rho_inf, as TeX."""
    norm = rho.removeprefix("rho").removeprefix("_").replace("inf", r"\infty")
    if len(norm) > 1:
        norm = f"{{{norm}}}"
    return rf"$\rho_{norm}$" if norm else r"$\rho$"
