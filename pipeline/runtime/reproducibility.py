"""Bitwise equal results: of an image in any batch on CPUs, of the same batch on a GPU.

The last bits of a row of a matrix product can depend on the row's position and on the number of
rows, because the library chooses its kernel by them. Near a class boundary DeepFool enlarges such a
difference by a factor of thousands. Three measures make an image's result depend on nothing but the
image:

1. MKL runs in a mode of conditional numerical reproducibility (CNR). On AMD CPUs its default mode
   computes even and odd rows of a small product differently. The CNR modes do not, and are as fast.
2. Batches have at least `MIN_BATCH` images; smaller ones are padded, since MKL uses other kernels
   for fewer rows.
3. With more than `MAX_THREADS` threads MKL splits a product by its number of rows, so every batch
   is padded to the same size.

`pipeline.evaluation.self_check` measures for a net whether the results are equal.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.runtime.machine import cpu_name

# In all trials with at most MAX_THREADS threads, a row had the same bits in every product of at
# least MIN_BATCH rows (docs/reproducibility.md).
MIN_BATCH = 16
MAX_THREADS = 4

_MODE = "MKL_CBWR"


def use_reproducible_kernels() -> None:
    """Set MKL's CNR mode, and a fixed workspace for cuBLAS's deterministic algorithms, unless the
    user has set them. The libraries read them at their first matrix product."""
    os.environ.setdefault(_MODE, "AUTO,STRICT")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions on GPUs round their inputs to TF32, or not. torch's own
    default allows it for convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def deterministic_algorithms(device: torch.device, wanted: bool) -> Iterator[None]:
    """A block in which a GPU repeats its results bit by bit, where torch has such algorithms.

    torch warns of operations that have none, such as the gradient of adaptive average pooling. CPUs
    need no setting.

    Args:
        device: the device of the run.
        wanted: false: the block changes nothing.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # A module whose attributes are properties.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    memory.fill_uninitialized_memory = False  # a debugging aid, which costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
        memory.fill_uninitialized_memory = fills


def images_at_once(batch_size: int, device: torch.device) -> int:
    """Number of images in an evaluation's batch; at least `MIN_BATCH` on a CPU."""
    return max(batch_size, MIN_BATCH) if device.type == "cpu" else batch_size


def min_batch_size(size: int, device: torch.device) -> int:
    """The number of images that smaller batches are padded to, for batches of at most ``size``."""
    if device.type == "cpu" and torch.get_num_threads() <= MAX_THREADS:
        return min(size, MIN_BATCH)
    return size


def kernels(device: torch.device) -> dict[str, str | int]:
    """The settings that the last bits of results depend on; compared between shards."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    threads = torch.get_num_threads()
    return {
        "device": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkl_mode": os.environ.get(_MODE, "default"),
        "threads": threads if threads > MAX_THREADS else f"at most {MAX_THREADS}",
    }
