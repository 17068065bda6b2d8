"""Reading files of torch.save without running code in them; damaged files are refused.

In: a path. Out: tensors in plain containers.
"""

import errno
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pipeline.errors import first_line
from pipeline.runtime.allocator import is_out_of_memory


class UnreadableFile(Exception):
    """The file is damaged or of another kind; the message is one line, without the path."""


class DamagedFile(UnreadableFile):
    """The file is cut short, or its content is not what was written."""


class ForeignObject(UnreadableFile):
    """The file contains Python objects besides tensors in plain containers."""


def load(path: Path) -> Any:
    """Read what torch.save wrote to a file; tensors are put on the CPU.

    Raises:
        DamagedFile: it is damaged, cut short or of another kind.
        ForeignObject: it contains other Python objects.
        UnreadableFile: it cannot be opened or read.
        MemoryError, RuntimeError: there is not enough memory.
    """
    try:
        _check_records(path)
        with warnings.catch_warnings(action="ignore"):  # warnings about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableFile:
        raise
    except UnpicklingError as error:
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if global_name is None:
            raise DamagedFile("is not a file of torch.save") from None
        raise ForeignObject(f"holds a Python object besides tensors ({global_name[1]})") from None
    except OSError as error:
        # A damaged zip file names offsets that no file has.
        kind = DamagedFile if error.errno == errno.EINVAL else UnreadableFile
        raise kind(f"cannot be read ({first_line(error)})") from None
    except Exception as error:  # damaged pickles raise errors of many types
        if is_out_of_memory(error):
            raise
        if isinstance(error, EOFError | RuntimeError):
            reason = first_line(error).partition(". This is an internal")[0]
            raise DamagedFile(f"cannot be read, it may be cut short ({reason})") from None
        raise DamagedFile(f"is not a file of torch.save ({type(error).__name__})") from None


def is_intact(path: Path) -> bool:
    """Whether the records of a file of torch.save have the checksums that were written; false if
    there is no such file. Files in torch's old format have no checksums."""
    try:
        _check_records(path)
    except (UnreadableFile, OSError):
        return False
    return path.exists()


def peek(path: Path) -> Any:
    """The content of a file of torch.save; None if it cannot be read. Tensors are mapped into
    memory, so damage to their values is not detected."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged files raise errors of many types
        return None


def _check_records(path: Path) -> None:
    """Compare the records of a zip file with their checksums, which torch.load does not do."""
    if not zipfile.is_zipfile(path):  # the old format has no checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.serialization.set_crc32_options(False) writes zeros instead of checksums.
            if not any(record.CRC for record in archive.infolist()):
                return
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DamagedFile(f"is damaged ({first_line(error)})") from None
    if damaged is not None:
        raise DamagedFile(f"is damaged: the checksum of its record {damaged} is wrong")
