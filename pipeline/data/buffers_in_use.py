"""DALI's buffers, kept until the GPU has read them.

A batch is a view of a buffer of DALI. When the last tensor that refers to it is gone, DALI may
write the next images there, in an order that it knows for its own stream only. The host is ahead of
the GPU, whose backward pass may still read them.
"""

from collections import deque

import torch
from torch import Tensor


class BuffersInUse:
    """Keeps the batches that work on the GPU may still read. Does nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._latest: Tensor | None = None
        self._waiting: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def add(self, images: Tensor) -> None:
        """Keep a new batch."""
        if self._device.type == "cuda":
            self._latest = images

    def release_read(self) -> None:
        """Release the batches that were read. To be called before the next batch is made: all work
        that reads the latest one has been given to the GPU by then.

        Waits for the work on the batch before the latest, so that at most two are kept.
        """
        self._release(1)

    def release_all(self) -> None:
        """Wait for the work on all batches, and release them."""
        self._release(0)

    def _release(self, num_kept: int) -> None:
        """Wait for the work on all but the latest batches, and release them."""
        if self._latest is not None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._waiting.append((self._latest, event))
            self._latest = None
        while len(self._waiting) > num_kept:
            _, event = self._waiting[0]
            event.synchronize()
            self._waiting.popleft()
