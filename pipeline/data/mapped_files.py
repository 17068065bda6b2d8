"""The bytes of images, as views of memory-mapped archives or read from files."""

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.runtime import machine

_HEAD = 16 * 1024  # bytes in which most images' headers end
_OTHER_FILES = 512  # descriptors of a run besides those of archives, of which each takes two


@dataclass(frozen=True)
class _Archive:
    """An archive that stays open."""

    data: np.ndarray  # its bytes, mapped
    descriptor: int


class Files:
    """The bytes of an index's images.

    Archives are mapped, and their sizes compared with the index, when this object is made. The
    decoder's threads read their pages from disk. The files of a folder are read when they are used:
    mapping them would keep a descriptor open for each image of the batches in use.

    A page fault in a mapped view keeps Python's global lock until the disk has answered, so that no
    other thread runs; ``posix_fadvise`` and ``pread`` release the lock, ``mmap.madvise`` does not.
    So `request` and `read_heads` use the former two, in a thread ahead of the decoder. With 350
    photos out of the page cache (local disk, medians of six), a busy thread did 3.4 times as much
    work a second beside ``pread`` alone as beside page faults, and 1.9 times as much beside both;
    both together took less time than the page faults.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._archives: dict[int, _Archive] = {}
        machine.allow_open_files(_OTHER_FILES + 2 * len(index.file_sizes))
        for number, name in enumerate(index.files):
            if name in index.file_sizes:
                archive = self._archives[number] = self._open(number)
                size = len(archive.data)
                if size != index.file_sizes[name]:
                    relation = "shorter" if size < index.file_sizes[name] else "longer"
                    raise UserError(
                        f"{index.root / name} is {relation} than its index {index.path} says "
                        f"({size} bytes, not {index.file_sizes[name]}); is the copy complete? "
                        "Otherwise make the index again with tools/index.py"
                    )

    def views(self, rows: np.ndarray) -> list[np.ndarray]:
        """The encoded bytes of each row's image, as read-only uint8 arrays."""
        return [self._view(*position) for position in self._positions(rows)]

    def request(self, rows: np.ndarray) -> None:
        """Ask the operating system to read the images of these rows; do not wait for them."""
        for file, offset, length in self._positions(rows):
            with contextlib.suppress(OSError):  # a hint; `views` reports what is wrong
                if file in self._archives:
                    _will_need(self._archives[file].descriptor, offset, length)
                else:
                    with self._path(file).open("rb", buffering=0) as opened:
                        _will_need(opened.fileno(), offset, length)

    def read_heads(self, rows: np.ndarray) -> None:
        """Wait until the headers of these rows' images are in memory."""
        for file, offset, length in self._positions(rows):
            if file in self._archives:
                try:
                    os.pread(self._archives[file].descriptor, min(length, _HEAD), offset)
                except OSError as error:
                    raise self._unreadable(file, error) from None

    def _positions(self, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """File, offset and length of each row's image."""
        index = self.index
        columns = (index.file[rows], index.offset[rows], index.length[rows])
        return zip(*(column.tolist() for column in columns), strict=True)

    def _view(self, file: int, offset: int, length: int) -> np.ndarray:
        if file in self._archives:
            view = self._archives[file].data[offset : offset + length]
        else:
            view = self._read(file, offset, length)
        if len(view) != length:
            raise UserError(
                f"{self._path(file)} is shorter than its index "
                f"{self.index.path} says; make the index again with tools/index.py"
            )
        return view

    def _read(self, file: int, offset: int, length: int) -> np.ndarray:
        try:
            with self._path(file).open("rb", buffering=0) as opened:
                return np.frombuffer(os.pread(opened.fileno(), length, offset), np.uint8)
        except FileNotFoundError:
            raise self._missing(file) from None
        except OSError as error:
            raise self._unreadable(file, error) from None

    def _open(self, file: int) -> _Archive:
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            # Slicing a plain ndarray is twice as fast as slicing the numpy.memmap it refers to.
            return _Archive(np.asarray(np.memmap(path, dtype=np.uint8, mode="r")), descriptor)
        except FileNotFoundError:
            raise self._missing(file) from None
        except OSError as error:
            if error.errno == errno.EMFILE:
                number = _OTHER_FILES + 2 * len(self.index.file_sizes)
                raise UserError(
                    f"{self.index.path} has {len(self.index.file_sizes):,} archives, more than a "
                    f"process may open; raise the limit: ulimit -n {number}"
                ) from None
            raise self._unreadable(file, error) from None
        except ValueError as error:  # an empty file cannot be mapped
            raise self._unreadable(file, error) from None

    def _path(self, file: int) -> Path:
        return Path(self.index.root) / self.index.files[file]

    def _missing(self, file: int) -> UserError:
        return UserError(
            f"no file {self._path(file)}, listed in {self.index.path}; if the data has moved, "
            "set --data.root FOLDER (in tools/index.py: --root)"
        )

    def _unreadable(self, file: int, error: Exception) -> UserError:
        return UserError(f"{self._path(file)} cannot be read: {error}")


def _will_need(descriptor: int, offset: int, length: int) -> None:
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
