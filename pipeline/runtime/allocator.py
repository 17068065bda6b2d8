"""Memory allocators: the peak, detecting that memory ran out, releasing or keeping freed memory."""

import contextlib
import ctypes
import gc
import sys

import torch

# Messages of PyTorch's CPU allocator, the C++ library and oneDNN when an allocation fails, and of
# CUDA's libraries, which do not use PyTorch's allocator: cuBLAS, cuDNN, NCCL and DALI.
_MESSAGES = (
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a memory object",
    "could not create a primitive",
    "could not execute a primitive",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9, after CUDNN_STATUS_INTERNAL_ERROR_
    "HOST_ALLOCATION_FAILED",
    "was unable to find an engine to execute",  # no convolution's workspace fits
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDA error: out of memory",
    "CUDA allocation failed",  # DALI
    "Can't allocate ",
    "Cuda failure 2 'out of memory'",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Most libraries say so in the message only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "descriptor" not in text and any(message in text for message in _MESSAGES)


def release_cached_memory() -> None:
    """Return freed memory to the system or the device, after memory has run out. Libraries that
    allocate directly from the system cannot use the blocks that `retain_freed_blocks` keeps."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def retain_freed_blocks() -> None:
    """Make the C library keep freed blocks instead of returning them to the system. The page faults
    of new blocks take an eighth of a training step on a CPU, and more of an attack."""
    threshold, trim, pad = -3, -1, -2  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # a C library without it
        return
    for option, value in ((threshold, 2**30), (trim, 2**31 - 1), (pad, 2**26)):
        mallopt(option, value)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far, of the GPU's allocator or, on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not available on every platform

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
