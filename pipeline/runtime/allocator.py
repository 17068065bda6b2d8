"""The memory allocators: recognising that memory ran out, returning it, and keeping it."""

import contextlib
import ctypes
import gc

import torch

# What PyTorch's CPU allocator, the C++ library and oneDNN say when an allocation fails.
_RAN_OUT = (
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a memory object",
    "could not create a primitive",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up; on a CPU only its words do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return "descriptor" not in said and any(words in said for words in _RAN_OUT)


def release_cached_memory() -> None:
    """Return freed memory to the system or the device, after it has run out: blocks that
    `retain_freed_blocks` keeps are of no use to libraries that ask the system themselves."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def retain_freed_blocks() -> None:
    """Let the C library keep freed blocks instead of returning each to the system: on the CPU the
    page faults of fresh blocks cost an eighth of a step, and more of the attack's."""
    threshold, trim, pad = -3, -1, -2  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for option, value in ((threshold, 2**30), (trim, 2**31 - 1), (pad, 2**26)):
        mallopt(option, value)
