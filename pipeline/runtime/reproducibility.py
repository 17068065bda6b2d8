"""The same bits for an image in any batch: what makes them so on CPUs.

A matrix product may give a row other last bits in another row's place or beside fewer rows, because
the library picks another kernel. Near a class boundary such a difference grows by a factor of some
thousands in DeepFool. Three measures make an image's result a function of the image alone:

1. MKL runs in a mode of conditional numerical reproducibility (CNR). On AMD CPUs its default mode
   gives even and odd rows of a small product other bits; no CNR mode does, at equal speed.
2. Batches hold at least `MIN_BATCH` images; smaller ones are padded. Fewer rows take other kernels.
3. With more than `MAX_THREADS` threads MKL splits products by the number of rows, so that every
   batch is padded to one size.

`pipeline.evaluation.self_check` measures whether this is so for a net.
"""

import os

import torch

from pipeline.runtime.machine import cpu_name

# With at most MAX_THREADS threads, products of at least this many rows gave each row the same bits
# in all trials (docs/reproducibility.md).
MIN_BATCH = 16
MAX_THREADS = 4

# Differences between two results that are taken for rounding: relative to the result, and to the
# image's norm.
RELATIVE_TOLERANCE, IMAGE_TOLERANCE = 1e-5, 1e-7
# By how much DeepFool may enlarge a difference in the last bits; 6,000 was seen.
_GROWTH = 1e4

_MODE = "MKL_CBWR"


def use_reproducible_kernels() -> None:
    """Set MKL's CNR mode, unless the user has set one. MKL reads it at its first matrix product."""
    os.environ.setdefault(_MODE, "AUTO,STRICT")


def images_at_once(batch_size: int, device: torch.device) -> int:
    """How many images an evaluation takes at once; at least `MIN_BATCH` on a CPU."""
    return max(batch_size, MIN_BATCH) if device.type == "cpu" else batch_size


def min_batch_size(size: int, device: torch.device) -> int:
    """To how many images smaller batches are padded, where at most ``size`` are taken at once."""
    if device.type == "cpu" and torch.get_num_threads() <= MAX_THREADS:
        return min(size, MIN_BATCH)
    return size


def relative_tolerance(difference: float) -> float:
    """By how much two measurements of one perturbation's norm may differ, relative.

    Args:
        difference: as `pipeline.evaluation.self_check` measured it, where they were made.
    """
    return max(RELATIVE_TOLERANCE, _GROWTH * difference)


def kernels(device: torch.device) -> dict[str, str | int]:
    """What the last bits of results depend on; compared between shards."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    threads = torch.get_num_threads()
    return {
        "device": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkl_mode": os.environ.get(_MODE, "default"),
        "threads": threads if threads > MAX_THREADS else f"at most {MAX_THREADS}",
    }
