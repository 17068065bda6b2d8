"""The panel of perturbations: image, perturbation (amplified) and perturbed image with classes."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.config import DataConfig


def draw(
    images: torch.Tensor,
    delta: torch.Tensor,
    before: list[str],
    after: list[str],
    data: DataConfig,
) -> Figure:
    """Draw one row an image.

    Args:
        images: (N, C, H, W), normalised.
        delta: (N, C, H, W), in the same space.
        before, after: predicted class of x and of x + dx.
        data: mean and std, to get back to pixels in [0, 1].
    """
    std = torch.tensor(data.std).view(-1, 1, 1)
    mean = torch.tensor(data.mean).view(-1, 1, 1)
    clean = images.float().cpu() * std + mean
    noise = delta.float().cpu() * std
    figure = Figure(figsize=(6.6, 2.2 * len(clean)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(clean), 3, squeeze=False)
    for row, (x, d) in enumerate(zip(clean, noise, strict=True)):
        peak = d.abs().max().item()
        factor = 0.5 / peak if peak > 0 else 1.0
        titles = (before[row], f"perturbation x {factor:.3g}", after[row])
        for axis, picture, title in zip(
            axes[row], (x, 0.5 + factor * d, x + d), titles, strict=True
        ):
            axis.imshow(_pixels(picture), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    return figure


def _pixels(picture: torch.Tensor) -> np.ndarray:
    picture = picture.clamp(0, 1).permute(1, 2, 0).numpy()
    return picture[..., 0] if picture.shape[2] == 1 else picture
