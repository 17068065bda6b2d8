"""The mean that is subtracted from images: a number per channel, or a mean image from a file.

Caffe, MatConvNet and the paper's nets for MNIST and CIFAR-10 use mean images. `tools/index.py mean`
computes one.
"""

import hashlib
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.config.text import did_you_mean_file
from pipeline.errors import UserError, first_line


def mean_of(data: DataConfig) -> np.ndarray:
    """``data.mean``, (C, 1, 1) or (C, S, S) float32, in units of pixel values in [0, 1].

    Raises:
        UserError: the file cannot be read, or does not fit the net's input.
    """
    if not isinstance(data.mean, str):
        return np.array(data.mean, np.float32).reshape(-1, 1, 1)
    try:
        image = np.load(data.mean, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"data.mean: no file {data.mean}"
            f"{did_you_mean_file(Path(data.mean)) or '; make it with tools/index.py mean'}"
        ) from None
    except Exception as error:  # a damaged header raises errors of many types
        raise UserError(
            f"data.mean: {data.mean} is not an .npy file of numbers ({first_line(error)}); make it "
            "again with tools/index.py mean"
        ) from None
    shape = (data.channels, data.crop_size, data.crop_size)
    fits = isinstance(image, np.ndarray) and image.shape == shape and image.dtype.kind == "f"
    if not (fits and 0 <= image.min() <= image.max() <= 1):  # false with NaN
        raise UserError(
            f"data.mean: {data.mean} is not an image of the shape {shape} (data.channels, "
            "data.crop_size) with pixels from 0 to 1; make it again with tools/index.py mean"
        )
    return image.astype(np.float32)


def identity(data: DataConfig) -> list[float] | str:
    """The identity of the mean: its values, or a hash of the mean image."""
    if not isinstance(data.mean, str):
        return data.mean
    return f"image {hashlib.sha256(mean_of(data).tobytes()).hexdigest()[:16]}"
