"""Decoding every image of an index as the loader does, to find those that fail."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.plan import BatchSpec, Windows

_BATCH = 32  # images, which are decoded at their full size
_PIXELS = 2**25  # of a batch, unless one image has more


class _Verifier(Loader):
    """A loader that collects the images that do not decode, and prints nothing."""

    def _leave_out(self, bad: list[int]) -> None:
        self.skipped += bad
        self._bad_rows.update(bad)


def undecodable_rows(
    index: Index, threads: int, progress: Callable[[int], None] = lambda _: None
) -> list[int]:
    """Rows whose image the loader cannot decode, sorted.

    Args:
        index: an index of images; they are decoded at their full size.
        threads: number of DALI's worker threads.
        progress: called with the number of images decoded so far.
    """
    data = DataConfig(crop_size=8, resize_size=8, mean=[0.0] * 3, std=[1.0] * 3)
    verifier = _Verifier(index, _whole_images(index), data, torch.device("cpu"), _BATCH, threads)
    done = 0
    for batch in verifier:
        done += len(batch.rows)
        progress(done + len(verifier.skipped))
    return sorted(set(verifier.skipped))


def _groups(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows of at most ``_BATCH`` images and ``_PIXELS`` pixels, at least one."""
    start, total = 0, 0
    for row, size in enumerate(pixels.tolist()):
        if row > start and (row - start == _BATCH or total + size > _PIXELS):
            yield np.arange(start, row)
            start, total = row, 0
        total += size
    yield np.arange(start, len(pixels))


def _whole_images(index: Index) -> Iterator[BatchSpec]:
    for rows in _groups(index.height.astype(np.int64) * index.width):
        shape = np.stack([index.height[rows], index.width[rows]], axis=1).astype(np.float32)
        corner = np.zeros_like(shape)
        mirror = np.zeros(len(rows), np.int32)
        yield BatchSpec(rows, Windows(corner, shape, corner, shape, mirror))
