"""Zero-copy views of image bytes inside memory-mapped archives and files."""

from collections import OrderedDict
from pathlib import Path

import numpy as np

from pipeline.data.index import Index
from pipeline.errors import UserError

_OPEN_FILES = 512  # limit on the mapped files of a folder; archives stay mapped


class Files:
    """The bytes of an index's images, as views of mapped files.

    Archives are mapped, and their sizes compared with the index, when this object is made. The
    files of a folder are mapped when they are read. The decoder's threads read the pages from disk.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        for number, name in enumerate(index.files):
            if name in index.file_sizes:
                size = len(self._map(number))
                if size != index.file_sizes[name]:
                    relation = "shorter" if size < index.file_sizes[name] else "longer"
                    raise UserError(
                        f"{index.root / name} is {relation} than its index {index.path} says "
                        f"({size} bytes, not {index.file_sizes[name]}); is the copy complete? "
                        "Otherwise make the index again with tools/index.py"
                    )

    def views(self, rows: np.ndarray) -> list[np.ndarray]:
        """The encoded bytes of each row's image, as read-only uint8 views."""
        index = self.index
        return [
            self._view(file, offset, length)
            for file, offset, length in zip(
                index.file[rows].tolist(),
                index.offset[rows].tolist(),
                index.length[rows].tolist(),
                strict=True,
            )
        ]

    def _view(self, file: int, offset: int, length: int) -> np.ndarray:
        data = self._maps.get(file)
        if data is None:
            data = self._map(file)
        view = data[offset : offset + length]
        if len(view) != length:
            raise UserError(
                f"{self.index.root / self.index.files[file]} is shorter than its index "
                f"{self.index.path} says; make the index again with tools/index.py"
            )
        return view

    def _map(self, file: int) -> np.ndarray:
        path = Path(self.index.root) / self.index.files[file]
        try:
            # Slicing a plain ndarray is twice as fast as slicing the numpy.memmap it refers to.
            data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except FileNotFoundError:
            raise UserError(
                f"no file {path}, listed in {self.index.path}; if the data has moved, "
                "set --data.root FOLDER"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise UserError(f"{path} cannot be read: {error}") from None
        self._maps[file] = data
        if len(self._maps) > _OPEN_FILES + len(self.index.file_sizes):
            oldest = next(f for f in self._maps if self.index.files[f] not in self.index.file_sizes)
            del self._maps[oldest]
        return data
