"""Tars of float32 arrays. One .npy file is appended for each row of an index.

A kill can cut the last member short. It is dropped when the tar is opened again.
"""

import io
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.index import FLOAT32_ARRAY, Index, write
from pipeline.data.tar_members import append_member
from pipeline.errors import UserError
from pipeline.runtime.files import name_in_errors


def members(path: Path) -> list[tarfile.TarInfo]:
    """The members of a tar, without a last member that is cut short."""
    size = path.stat().st_size
    complete: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:", ignore_zeros=False) as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    break
                complete.append(member)
    except tarfile.ReadError:  # cut short, or empty
        pass
    return complete


def _end_of_last_member(path: Path) -> int:
    """Byte at which the next member can be written; contents are padded to whole blocks."""
    complete = members(path)
    if not complete:
        return 0
    num_blocks = math.ceil(complete[-1].size / tarfile.BLOCKSIZE)
    return complete[-1].offset_data + num_blocks * tarfile.BLOCKSIZE


def stored(folder: Path) -> set[int]:
    """Rows whose arrays are in the tars of a folder."""
    return {int(Path(m.name).stem) for path in folder.glob("*.tar") for m in members(path)}


class TarAppender:
    """Appends arrays to one tar."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            os.truncate(path, _end_of_last_member(path))
        self._path = path
        self._file = path.open("ab")
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 (closed below)

    def append(self, row: int, values: np.ndarray) -> None:
        """Store the array of a row, as float32."""
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
        with name_in_errors(self._path):
            append_member(self._tar, f"{row}.npy", content.getvalue())

    def flush(self) -> None:
        """Pass all written bytes to the operating system."""
        with name_in_errors(self._path):
            self._file.flush()

    def __enter__(self) -> "TarAppender":
        return self

    def __exit__(self, *_: Any) -> None:
        with name_in_errors(self._path), self._file:
            self._tar.close()


def write_index(folder: Path, source: Index) -> int:
    """Write index.parquet for the arrays of a folder.

    Args:
        folder: contains the tars; the index is written there.
        source: the index of the images that the arrays were made from, for labels and classes.

    Returns:
        The number of arrays.

    Raises:
        UserError: there are no arrays.
    """
    columns: dict[str, list] = {}
    paths = sorted(folder.glob("*.tar"))
    for path in paths:
        with path.open("rb") as file:
            for member in members(path):
                row = int(Path(member.name).stem)
                values = _location_and_size(file, member)
                values |= {"id": f"adversarial/{source.id(row)}", "file": path.name}
                values |= {"label": int(source.label[row]), "format": FLOAT32_ARRAY}
                for name, value in values.items():
                    columns.setdefault(name, []).append(value)
    if not columns:
        raise UserError(f"{folder}: no image was flipped; are these the weights for this data?")
    archives = {path.name: path for path in paths}
    write(folder / "index.parquet", pa.table(columns), folder.resolve(), source.classes, archives)
    return len(columns["id"])


def _location_and_size(file: io.BufferedReader, member: tarfile.TarInfo) -> dict[str, Any]:
    """Position and length of the values, and their width, height and mode, from the .npy header."""
    file.seek(member.offset_data)
    np.lib.format.read_magic(file)
    (channels, height, width), _, _ = np.lib.format.read_array_header_1_0(file)
    offset = file.tell()
    length = member.offset_data + member.size - offset
    mode = "L" if channels == 1 else "RGB"
    return {"offset": offset, "length": length, "width": width, "height": height, "mode": mode}
