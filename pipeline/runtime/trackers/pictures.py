"""Figures as pixels."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # a third of a second


def render(figure: "Figure") -> np.ndarray:
    """Draw a matplotlib figure; returns (H, W, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def draw_histogram(values: np.ndarray, name: str) -> np.ndarray:
    """A picture of a distribution; values: (N,); returns (H, W, 3), uint8."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.hist(values[np.isfinite(values)], bins=64)
    axes.set(xlabel=name, ylabel="images")
    return render(figure)
