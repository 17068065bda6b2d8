"""Files that are whole at any moment: written beside, then renamed; one line where that fails."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, brief

_REMEDY = "give another --out"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of ``path``; after an error the old file stays.

    Raises:
        OSError: ``path`` is a folder, a device or a pipe, which a file must not replace.
    """
    _refuse_other_than_file(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        # torch's archive writer ends with an error of its own, after the system's.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or brief(cause)
        raise UserError(f"cannot write {path}: {reason}; {remedy}") from None


@contextmanager
def writable(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """As `report_unwritable`, for an output that the user named, whose folder is made."""
    with report_unwritable(path, remedy):
        _probe(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


def check_writable(path: Path, remedy: str = _REMEDY) -> None:
    """Refuse an output that cannot be written, before long work is done for it; leaves nothing.

    Args:
        path: the output; its folder need not exist yet.
        remedy: what the user can do.

    Raises:
        UserError: names the path, the reason and the remedy.
    """
    with report_unwritable(path, remedy):
        _probe(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def _probe(path: Path) -> None:
    """Write a nameless file into the folder of ``path``, or into the nearest one that exists."""
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
