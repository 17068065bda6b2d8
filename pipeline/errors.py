"""Errors that the user can correct, exit codes, and how messages are printed.

A mistake in an option, a file or the data raises `UserError`. The entry points run under
`exit_on_user_error`, which prints it as one line on one rank and exits with code 2. Any other
exception is a defect of this program and keeps its traceback.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
LOST_EXIT_CODE = 3  # another rank ended or never connected
STOPPED_EXIT_CODE = 75  # after a signal, with everything saved: the same command resumes

_LOGIN = re.compile(r"(?<=://)\S*@")


class UserError(Exception):
    """Something that the user can correct; the message names the option or file and the remedy."""


class Stopped(Exception):
    """The run received a signal to stop, and has saved its state."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or the name of its type if it has no message.

    Addresses are without the user and the password, as https://USER:PASSWORD@HOST has them.
    """
    return _LOGIN.sub("", (str(error).splitlines() or [type(error).__name__])[0])


def first_few(names: Sequence[str], limit: int = 8, separator: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f"{separator.rstrip()} and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def warn(*messages: str) -> None:
    """Print each warning as one line; empty ones are skipped. Only rank 0 prints."""
    if is_first_process():
        for message in filter(None, messages):
            print(f"warning: {message}", file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Print one line on stdout. Only rank 0 prints."""
    if is_first_process():
        print(message, flush=True)


def is_first_process() -> bool:
    """Whether the environment states that this is rank 0, or states no valid rank. In the second
    case the error about the rank must be printed."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))
    return not (rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size))


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def is_disk_error(error: BaseException | None) -> bool:
    """Whether a file could not be written because the disk is full, read-only or over a limit."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def disk_message(error: OSError) -> str:
    """One line for an error that `is_disk_error` accepts."""
    return (
        f"cannot write {error.filename or 'a file'}: {os.strerror(error.errno or 0)}; results "
        "written before are kept: free some space, then rerun the same command to resume"
    )


def exit_with_error(message: str) -> NoReturn:
    """Print a mistake as one line and exit. All ranks fail alike; only rank 0 prints."""
    if is_first_process():
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(5)  # torchrun ends all ranks when one ends; rank 0 must print first
    raise SystemExit(USER_ERROR_EXIT_CODE)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` or a full disk as one line, and exit.

    For code that runs without ranks, or before they have joined.
    """
    try:
        yield
    except UserError as error:
        exit_with_error(str(error))
    except OSError as error:
        if not is_disk_error(error):
            raise
        exit_with_error(disk_message(error))
