"""Files that are whole at any moment: written beside, then renamed.

A killed process leaves its temporary file behind. The name of a temporary file carries host and
process, so that later processes remove those of processes that have ended.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import is_disk_error

_HOST = socket.gethostname()
_TEMPORARY = re.compile(r"\..+\.tmp-(?P<pid>\d{1,9})-(?P<host>.+)")
_STALE_SECONDS = 24 * 3600  # of another host, whose processes cannot be seen from here
_swept: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of ``path``; after an error the old file stays.

    The first call for a folder also removes temporary files that ended processes left in it.
    """
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep(path.parent)
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}-{_HOST}")
    with naming(path):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of a full or read-only disk name ``path``: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if is_disk_error(error):
            error.filename = str(path)
        raise


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder whose process has ended.

    Those of other hosts are removed once nothing was written to them for a day. Files of running
    processes and files with other names stay.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = _TEMPORARY.fullmatch(entry.name)
            if name and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if _is_abandoned(name["host"], int(name["pid"]), entry.stat().st_mtime):
                        os.unlink(entry.path)


def _is_abandoned(host: str, pid: int, written: float) -> bool:
    if host != _HOST:
        return time.time() - written > _STALE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user's
        return False
    return False


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")
