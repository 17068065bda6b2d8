"""The plan: the image at each position of an epoch and its crop, as a pure function.

Order, crops and flips depend only on (seed, epoch, position), through a counter-based generator
(Philox). They are the same for any number of ranks, and any position can be computed directly. Only
raw 64-bit integers of the generator are used, because NumPy guarantees their values.
"""

from dataclasses import dataclass, fields

import numpy as np

from pipeline.config import DataConfig

_TRIES = 10  # as in torchvision's RandomResizedCrop
_DRAWS = 4 * _TRIES + 4  # 64-bit integers per position; a multiple of Philox's block of 4


@dataclass(frozen=True)
class Windows:
    """The windows of B images that are decoded and resized; coordinates in pixels, (y, x).

    The integer window is decoded; the region of interest inside it, which may be fractional, is
    resized to the square input.
    """

    anchor: np.ndarray  # (B, 2) float32, top left of the decoded window
    shape: np.ndarray  # (B, 2) float32, height and width of the decoded window
    roi_start: np.ndarray  # (B, 2) float32, relative to the window
    roi_end: np.ndarray  # (B, 2) float32
    mirror: np.ndarray  # (B,) int32, 1 to flip horizontally


def order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, (num_images,) int64."""
    sort_keys = np.random.Philox(key=_key(seed, epoch, stream=0)).random_raw(num_images)
    return np.argsort(sort_keys, kind="stable")


def training_windows(
    width: np.ndarray,
    height: np.ndarray,
    seed: int,
    epoch: int,
    start: int,
    config: DataConfig,
) -> Windows:
    """Windows of the positions ``start`` to ``start + B`` of an epoch.

    Args:
        width, height: (B,) sizes of the images at these positions, in pixels.
        seed: seed of the run.
        epoch: number of the epoch.
        start: first position. The random numbers of a position do not depend on it.
        config: crop_size, crop_scale, crop_ratio, random_crop and hflip are used.
    """
    num = len(width)
    generator = np.random.Philox(key=_key(seed, epoch, stream=1))
    generator.advance(start * (_DRAWS // 4))  # Philox counts blocks of four integers
    raw = generator.random_raw(num * _DRAWS).reshape(num, _DRAWS)
    uniform = (raw >> 11) * 2.0**-53  # in [0, 1), with 53 bits
    mirror = (uniform[:, -1] < 0.5) & config.hflip
    if not config.random_crop:
        return evaluation_windows(width, height, config, mirror)
    anchor, shape = _random_resized_crop(width, height, uniform[:, : 4 * _TRIES], config)
    return _windows(anchor, shape, np.zeros_like(anchor), shape, mirror)


_HALF_WIDTH = {"bilinear": 1.0, "bicubic": 2.0}


def evaluation_windows(
    width: np.ndarray, height: np.ndarray, config: DataConfig, mirror: np.ndarray | None = None
) -> Windows:
    """Resize the shorter side to ``resize_size``, then crop the centre to ``crop_size``.

    The arithmetic is that of torchvision's Resize and CenterCrop. Only the part of the image that
    the resampling filter uses is decoded.
    """
    size = np.stack([height, width], axis=1).astype(np.int64)
    short = size.min(axis=1, keepdims=True)
    resized = np.where(size == short, config.resize_size, config.resize_size * size // short)
    top_left = np.round((resized - config.crop_size) / 2.0)
    scale = size / resized
    start, end = top_left * scale, (top_left + config.crop_size) * scale
    # Half-width of the filter, and one pixel.
    margin = _HALF_WIDTH[config.interpolation] * np.maximum(scale, 1.0) + 1.0
    low = np.clip(np.floor(start - margin), 0, None)
    high = np.minimum(np.ceil(end + margin), size)
    if mirror is None:
        mirror = np.zeros(len(size), dtype=bool)
    return _windows(low, high - low, start - low, end - low, mirror)


def _random_resized_crop(
    width: np.ndarray, height: np.ndarray, uniform: np.ndarray, config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """torchvision's RandomResizedCrop.get_params for B images at once; (B, 2) anchor and shape."""
    tries = uniform.reshape(len(width), _TRIES, 4)
    w, h = width[:, None].astype(float), height[:, None].astype(float)
    area = (
        w
        * h
        * (config.crop_scale[0] + tries[..., 0] * (config.crop_scale[1] - config.crop_scale[0]))
    )
    low, high = np.log(config.crop_ratio)
    aspect = np.exp(low + tries[..., 1] * (high - low))
    crop_w, crop_h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (crop_w > 0) & (crop_w <= w) & (crop_h > 0) & (crop_h <= h)
    first = fits.argmax(axis=1)
    pick = (np.arange(len(width)), first)
    shape = np.stack([crop_h[pick], crop_w[pick]], axis=1)
    room = np.stack([h[:, 0], w[:, 0]], axis=1) - shape
    anchor = np.floor(tries[pick][:, 2:] * (room + 1))
    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        shape[none_fits] = _central_shape(width[none_fits], height[none_fits], config)
        size = np.stack([height[none_fits], width[none_fits]], axis=1)
        anchor[none_fits] = (size - shape[none_fits]) // 2
    return anchor, shape


def _central_shape(width: np.ndarray, height: np.ndarray, config: DataConfig) -> np.ndarray:
    """torchvision's fallback: the largest central crop whose width / height is allowed; (B, 2)."""
    ratio = width / height
    least, largest = config.crop_ratio
    h = np.where(ratio < least, np.round(width / least), height)
    w = np.where(ratio > largest, np.round(height * largest), width)
    return np.stack([h, w], axis=1)


def _windows(
    anchor: np.ndarray, shape: np.ndarray, start: np.ndarray, end: np.ndarray, mirror: np.ndarray
) -> Windows:
    single = [np.ascontiguousarray(a, dtype=np.float32) for a in (anchor, shape, start, end)]
    return Windows(*single, mirror=mirror.astype(np.int32))


def _key(seed: int, epoch: int, stream: int) -> np.ndarray:
    return np.array([seed, epoch * 2 + stream], dtype=np.uint64)


@dataclass(frozen=True)
class BatchSpec:
    """The images of a batch, and the window of each."""

    rows: np.ndarray  # (B,) int64, rows of the index
    windows: Windows

    def take(self, positions: np.ndarray) -> "BatchSpec":
        """The images at these positions of the batch."""
        windows = {f.name: getattr(self.windows, f.name)[positions] for f in fields(Windows)}
        return BatchSpec(self.rows[positions], Windows(**windows))
