"""Images to check model.onnx with: those of the run's index, or generated ones."""

import io

import numpy as np
from PIL import Image

from pipeline.config import DataConfig, EvaluateConfig
from pipeline.data import source
from pipeline.data.mapped_files import Files
from pipeline.errors import UserError, note

NUM_IMAGES = 10
_SIZES = ((300, 200), (224, 400), (500, 375), (256, 256), (100, 80))  # width, height


def images_for_check(config: EvaluateConfig) -> list[np.ndarray]:
    """Decoded images (H, W, channels) uint8 of several sizes: evenly spaced ones of ``data.val``.

    Where the index or its images cannot be read, smooth generated ones.
    """
    try:
        index = source.open_index(config, "val")
        rows = index.subset(min(NUM_IMAGES, len(index)))
        if not index.is_array[rows].any():
            return [_decode(view.tobytes(), config.data) for view in Files(index).views(rows)]
    except (UserError, OSError) as error:  # OSError: PIL cannot read an image
        note(f"model.onnx is checked with generated images: {error}")
    return _generated(config.data)


def _decode(data: bytes, config: DataConfig) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("L" if config.channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, config.channels)


def _generated(config: DataConfig) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (NUM_IMAGES, 9, 12, 3), dtype=np.uint8)
    images = []
    for number, pixels in enumerate(coarse):
        size = _SIZES[number % len(_SIZES)]
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        images.append(np.asarray(resized)[:, :, : config.channels])
    return images
