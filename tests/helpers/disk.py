"""Files that cannot grow, as on a disk that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.data import demo


@contextmanager
def disk_full(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes."""
    demo.prepare()  # the embedded digits, which are no part of the run
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
