"""One writer a folder: a lock that ends with its process, whatever ends that."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.errors import UserError
from pipeline.runtime.files import name_in_errors

_PATIENCE = 5  # seconds: a run that was just ended may still be leaving
_held: list[IO[str]] = []


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Wait until no other process is in the same place."""
    with path.open("a") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_folder(folder: Path) -> None:
    """Keep other processes from writing a run into the folder until this one ends.

    Works between nodes where the file system has locks (NFS from version 4, Lustre with -o flock);
    elsewhere it does nothing.

    Raises:
        UserError: another process holds it; says which.
    """
    file = (folder / ".lock").open("a+")
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() - begin < _PATIENCE:
                time.sleep(0.2)
                continue
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"output: {folder} is being written by {holder}; end that, or give another --output"
            ) from None
        except OSError:  # a file system without locks
            return
    job = f" of job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with name_in_errors(folder / ".lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
        file.flush()
    _held.append(file)
