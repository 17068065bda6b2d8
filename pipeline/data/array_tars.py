"""float32 arrays in tars, as images have them: one .npy a row, appended as they are made.

A tar may end in a member that a kill cut short; it is dropped when the tar is opened again.
"""

import io
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
    """The whole members of a tar."""
    size = path.stat().st_size
    found: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:", ignore_zeros=False) as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    break
                found.append(member)
    except tarfile.ReadError:  # cut short, or empty
        pass
    return found


def stored(folder: Path) -> set[int]:
    """Rows that the tars of a folder hold."""
    return {int(Path(m.name).stem) for path in folder.glob("*.tar") for m in members(path)}


class Appender:
    """Appends arrays to one tar."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            last = members(path)[-1:]
            blocks = last[0].offset_data + -(-last[0].size // 512) * 512 if last else 0
            os.truncate(path, blocks)
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
        """Hand everything to the operating system."""
        with name_in_errors(self._path):
            self._file.flush()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: Any) -> None:
        with name_in_errors(self._path), self._file:
            self._tar.close()


def write_index(folder: Path, source: Index) -> int:
    """Index the arrays of a folder, as index.parquet there; their number.

    Args:
        folder: with the tars.
        source: whose rows they are made of; gives labels and classes.

    Raises:
        UserError: there are none.
    """
    columns: dict[str, list] = {}
    paths = sorted(folder.glob("*.tar"))
    for path in paths:
        with path.open("rb") as file:
            for member in members(path):
                row = int(Path(member.name).stem)
                values = _facts(file, member)
                values |= {"id": f"adversarial/{source.id(row)}", "file": path.name}
                values |= {"label": int(source.label[row]), "format": FLOAT32_ARRAY}
                for name, value in values.items():
                    columns.setdefault(name, []).append(value)
    if not columns:
        raise UserError(f"{folder}: no image was flipped; is this the net that it was trained for?")
    archives = {path.name: path for path in paths}
    write(folder / "index.parquet", pa.table(columns), folder.resolve(), source.classes, archives)
    return len(columns["id"])


def _facts(file: io.BufferedReader, member: tarfile.TarInfo) -> dict[str, Any]:
    """Where the values are and what shape they have, by the .npy header."""
    file.seek(member.offset_data)
    np.lib.format.read_magic(file)
    (channels, height, width), _, _ = np.lib.format.read_array_header_1_0(file)
    offset = file.tell()
    length = member.offset_data + member.size - offset
    mode = "L" if channels == 1 else "RGB"
    return {"offset": offset, "length": length, "width": width, "height": height, "mode": mode}
