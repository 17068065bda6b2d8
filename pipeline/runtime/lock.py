"""File locks, which the system releases when their process ends, also by a kill."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UserError
from pipeline.runtime.files import name_in_errors

_TIMEOUT = 5  # seconds; a run that was just stopped may still hold the lock
_held: list[IO[str]] = []  # open until the process ends


def try_lock(file: IO[str], wait: bool = False) -> bool:
    """Lock an open file until it is closed or the process ends.

    This works between nodes if the file system has locks (NFS from version 4, Lustre with -o
    flock). On other file systems nothing is locked, and the result is True.

    Args:
        file: opened for writing.
        wait: wait until no other process has the lock.

    Returns:
        False if another process has the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Run the block when no other process is in such a block with the same lock file."""
    with path.open("a") as file:
        try_lock(file, wait=True)
        yield


def lock_folder(folder: Path) -> None:
    """Keep other processes from writing a run into the folder until this one ends.

    Raises:
        UserError: another process has the lock; names the process.
    """
    file = (folder / ".lock").open("a+")
    begin = time.monotonic()
    while not try_lock(file):
        if time.monotonic() - begin > _TIMEOUT:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"output: {folder} is being written by {holder}; end that process, or give another "
                "--output"
            )
        time.sleep(0.2)
    job = f" of job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with name_in_errors(folder / ".lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
        file.flush()
    _held.append(file)
