"""How many images fit into memory at once, for ``regularizer.max_images: auto``.

In: a training step, a device. Out: the number of images, from the memory that a step on two and
on four images takes and from the free memory.
"""

import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Part of the free memory that is used: allocators fragment it, and convolutions need workspace.
USABLE_SHARE = 0.8
# Largest number of tensors as large as all images of the batch that the attack holds besides the
# net's activations.
NUM_INPUT_SIZED_TENSORS = 12


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations have returned and that are not freed.

    Attributes:
        current: bytes now.
        peak: largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._counted: set[int] = set()  # ids of storages that are not freed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # A storage has the same Python object until it is freed, so its id identifies it.
        key, size = id(storage), storage.nbytes()
        if key in self._counted:
            return
        self._counted.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.current -= size


class PassSize(NamedTuple):
    """Images of one forward and backward pass."""

    shape: tuple[int, ...]  # (C, H, W) of an image
    batch: int  # number of images
    largest_useful: int  # number of images at once above which there are not fewer passes


class MemoryBudget(NamedTuple):
    """How many images fit into memory at once, and the numbers this follows from."""

    images: int  # number of images in the net at the same time
    batch: int  # images of one forward and backward pass
    per_image: float  # bytes that each image takes
    free: int  # bytes of free memory

    def __str__(self) -> str:
        fits = f"{self.images} images at once, a pass has {self.batch}"
        return f"{fits} ({self.per_image / 2**20:.1f} MiB each, {self.free / 2**30:.1f} GiB free)"


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a step allocates at its peak, on top of those allocated before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        step()
    return memory.peak


def free_bytes(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that this process can still allocate.

    Args:
        device: a GPU, or the CPU for the main memory of the machine (or of its control group).
        num_processes: processes that share the main memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free // num_processes


def max_images_that_fit(
    step: Callable[[int], Any],
    parameters: list[nn.Parameter],
    size: PassSize,
    device: torch.device,
    num_processes: int = 1,
) -> MemoryBudget:
    """The largest number of images that fit into memory at the same time.

    The memory of a step is assumed to be linear in the number of images; two and four are measured.

    Args:
        step: computes the gradients of the parameters for a number of images.
        parameters: the trained parameters; the optimiser has a momentum for each.
        size: images of the pass.
        device: where the step runs.
        num_processes: processes that share the memory.
    """
    step(2)  # allocates what is kept from the first pass on, which must not be counted
    two, four = (peak_bytes(lambda n=n: step(n), device) for n in (2, 4))
    per_image = max((four - two) / 2, 1.0)
    momentum = sum(p.numel() * p.element_size() for p in parameters)
    fixed = max(two - 2 * per_image, 0.0) + momentum
    free = free_bytes(device, num_processes)
    available = USABLE_SHARE * free - fixed
    images = min(int(available / per_image), size.largest_useful)
    if images < size.batch:
        inputs = NUM_INPUT_SIZED_TENSORS * size.batch * math.prod(size.shape) * 4
        num_fitting = max(int((available - inputs) / per_image), 1)
        images = math.ceil(size.batch / math.ceil(size.batch / num_fitting))
    return MemoryBudget(images, size.batch, per_image, free)
