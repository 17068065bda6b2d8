"""Atomic writes, and one-line errors for outputs that cannot be written.

A killed process leaves its temporary file behind. The name of a temporary file contains the number
of its process and a hash of the scope in which that number is valid, so that later processes can
remove the files of processes that have ended.
"""

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, first_line, is_disk_error
from pipeline.runtime.process_scope import SCOPE, has_ended

_REMEDY = "give another --out"
# Names of temporary files.
# SQLite adds a suffix for a file beside a database that it writes.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>\d{1,9})-(?P<scope>[^-]+)(?:-journal)?")
_STALE_SECONDS = 24 * 3600  # for files of other scopes, whose processes cannot be looked up
_swept: set[Path] = set()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write. It replaces ``path`` when the block ends without an error.

    The first call for a folder also removes temporary files that ended processes left in it.

    Raises:
        OSError: ``path`` is a folder, a device or a pipe, which a file must not replace.
    """
    with _temporary(path) as partial:
        yield partial
        os.replace(partial, path)


@contextmanager
def atomic_create(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, but a file that another process has created meanwhile stays.

    On file systems without hard links it stays unless both appear at the same moment.
    """
    with _temporary(path) as partial:
        yield partial
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(partial, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """The name of a temporary file beside ``path``, which is removed if it is left."""
    _refuse_other_than_file(path)
    if path.parent not in _swept:
        _swept.add(path.parent)
        remove_abandoned(path.parent)
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}-{SCOPE}")
    with name_in_errors(path):
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Add ``path`` to errors of a full or read-only disk. Errors of open files have no name."""
    try:
        yield
    except OSError as error:
        if is_disk_error(error):
            error.filename = str(path)
        raise


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose process has ended.

    Temporary files of other machines and containers are removed after a day without a write.
    Files of running processes and files with other names are not removed.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if _is_abandoned(match["scope"], int(match["pid"]), entry.stat().st_mtime):
                        os.unlink(entry.path)


def _is_abandoned(scope: str, pid: int, written: float) -> bool:
    if scope != SCOPE:
        return time.time() - written > _STALE_SECONDS
    return has_ended(pid, scope)


@contextmanager
def report_unwritable(path: Path, remedy: str) -> Iterator[None]:
    """Report a failure to write an output.

    Args:
        path: the output.
        remedy: what the user can do.

    Raises:
        UserError: the block raised an `OSError`, or a library's `RuntimeError` that one caused;
            names the path, the reason and the remedy.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's archive writer raises a RuntimeError while it handles the system's error.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        name, reason = path, cause.strerror or first_line(cause)
        if is_disk_error(cause):  # libraries word the reason differently
            name, reason = cause.filename or path, os.strerror(cause.errno or 0)
        raise UserError(f"cannot write {name}: {reason}; {remedy}") from None


@contextmanager
def writable(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Like `report_unwritable`, for an output that an option names. Its folder is created."""
    with report_unwritable(path, remedy):
        _probe(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


def check_writable(path: Path, remedy: str = _REMEDY) -> None:
    """Refuse an output that cannot be written, before the work for it. Creates no file.

    Args:
        path: the output; its folder need not exist yet.
        remedy: what the user can do.

    Raises:
        UserError: names the path, the reason and the remedy.
    """
    with report_unwritable(path, remedy):
        _probe(path)


def refuse_input(path: Path, inputs: Iterable[Path], option: str = "--out") -> None:
    """Refuse an output that is one of the command's own inputs, also by a link.

    Args:
        path: the output; it need not exist yet.
        inputs: the files that the command reads.
        option: the option that names the output.

    Raises:
        UserError: names the option and the path.
    """
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(
                f"{option} {path} is the file {source}, which this command reads; give another "
                f"{option}"
            )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def _probe(path: Path) -> None:
    """Write an unnamed file into the folder of ``path``, or into its nearest existing parent."""
    _refuse_other_than_file(path)
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def _refuse_other_than_file(path: Path) -> None:
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
