"""A copy from the GPU that later work on the GPU does not delay."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy, after the work that is queued on the GPU now."""
        self._values = values.to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> Tensor:
        """The tensor on the host; waits for the copy alone."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values
