"""The contact sheet: images, amplified perturbations, and perturbed images with classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import DataConfig
from pipeline.config.aliases import translate
from pipeline.data.mean_image import mean_of
from pipeline.evaluation.manifest import Manifest
from pipeline.evaluation.samples import Example
from pipeline.evaluation.shard_results import ResultsFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(examples: Sequence[Example], class_names: list[str], data: DataConfig) -> "Figure":
    """Draw a figure with one row for each image.

    Args:
        examples: at least one example, in the space that ``data`` describes.
        class_names: the name of each label.
        data: mean and std are used to compute pixels in [0, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing it takes 0.3 s
    from matplotlib.figure import Figure

    std = np.array(data.std).reshape(-1, 1, 1)
    mean = mean_of(data)
    figure = Figure(figsize=(6.6, 2.2 * len(examples)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), 3, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        x, d = example.image * std + mean, example.delta * std
        peak = float(np.abs(d).max())
        factor = 0.5 / peak if peak > 0 else 1.0
        before, after = (
            class_names[label] if 0 <= label < len(class_names) else str(label)
            for label in (example.before, example.after)
        )
        titles = (before, f"perturbation x {factor:.3g}", after)
        for axis, picture, title in zip(row, (x, 0.5 + factor * d, x + d), titles, strict=True):
            axis.imshow(_pixels(picture), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9, parse_math=False)  # a class name may have $
            axis.set_axis_off()
    return figure


def draw_stored(folder: Path, manifest: Manifest) -> "Figure | None":
    """The contact sheet of the examples that an evaluation stored; None if it stored none.

    Args:
        folder: OUTPUT of the evaluation.
        manifest: the manifest of the evaluation.
    """
    store, preprocessing = ResultsFolder(folder / "results"), manifest.identity.input
    shape = (preprocessing.channels, preprocessing.crop, preprocessing.crop)
    examples = store.examples(shape)
    if not examples:
        return None
    mean = store.mean() or preprocessing.mean
    # Stored records have the first names of options.
    options = translate(DataConfig, preprocessing.to_dict()).values
    data = DataConfig(**{**options, "mean": mean})
    if manifest.identity.protocol.space.startswith("pixels"):
        data.mean, data.std = [0.0] * data.channels, [1.0] * data.channels
    return draw(examples, manifest.about["class_names"], data)


def _pixels(picture: np.ndarray) -> np.ndarray:
    picture = picture.clip(0, 1).transpose(1, 2, 0)
    return picture[..., 0] if picture.shape[2] == 1 else picture
