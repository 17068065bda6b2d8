"""Memory: how many images fit at once.

In: an objective, a device. Out: the number of images that `regularizer.max_images` auto lets the
attack hold at once, from what a few images were measured to take and what is free.
"""

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.8  # of the free memory: allocators fragment, and convolutions take workspace
INPUTS = 12  # tensors of the size of the whole batch's images, at most, beside the net's own


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of every storage that an operation returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class MemoryBudget(NamedTuple):
    """How many images at once, and why."""

    images: int
    batch: int  # images of a pass
    per_image: float  # bytes
    free: int  # bytes

    def __str__(self) -> str:
        fits = f"{self.images} of {self.batch} images at once"
        return f"{fits} ({self.per_image / 2**20:.1f} MiB each, {self.free / 2**30:.1f} GiB free)"


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes that tensors hold at the peak of a step, above what they held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        step()
    return memory.peak


def free_bytes(device: torch.device, sharers: int = 1) -> int:
    """Bytes free for this process: of its GPU, or its share of the machine's (or group's)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
        free = min(free, limit - used)
    except (OSError, ValueError):  # no group, or no limit ("max")
        pass
    return free // sharers


def max_images_that_fit(
    step: Callable[[int], Any],
    parameters: list[nn.Parameter],
    shape: tuple[int, ...],
    batch: int,
    device: torch.device,
    sharers: int = 1,
) -> MemoryBudget:
    """The largest number of images that fit at once, by measuring two and four.

    Args:
        step: a whole step of so many images, up to the parameters' gradients.
        parameters: with whose momentum to reckon.
        shape: of an image, (C, H, W).
        batch: images of a pass, the most that can be needed.
        device: where.
        sharers: processes that share the memory.
    """
    step(2)  # what the first pass finds out and keeps is no part of it
    two, four = (peak_bytes(lambda n=n: step(n), device) for n in (2, 4))
    per_image = max((four - two) / 2, 1.0)
    fixed = max(two - 2 * per_image, 0.0)
    fixed += sum(p.numel() * p.element_size() for p in parameters)  # momentum
    inputs = INPUTS * batch * math.prod(shape) * 4
    free = free_bytes(device, sharers)
    room = SHARE * free - fixed
    parts = 1
    if room < batch * per_image:
        parts = math.ceil(batch / max(int((room - inputs) / per_image), 1))
    return MemoryBudget(math.ceil(batch / parts), batch, per_image, free)
