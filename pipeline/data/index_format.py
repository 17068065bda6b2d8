"""The Parquet file of an index: its columns, its metadata, and checks of its content.

A damaged index is reported in one line with the file's name, before any image is read.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.classes import Classes, is_list_of_strings
from pipeline.errors import UserError, first_line

VERSION = 1
METADATA_KEY = b"deep_defense_index"
REMEDY = "make it again with tools/index.py"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique; the member's or file's path
        ("file", pa.dictionary(pa.int32(), pa.string())),  # relative to the metadata's root
        ("offset", pa.int64()),  # position of the image's first byte in the file
        ("length", pa.int32()),  # in bytes
        ("label", pa.int32()),  # 0..num_classes-1
        ("width", pa.int32()),  # in pixels, as stored (EXIF orientation is not applied)
        ("height", pa.int32()),
        ("format", pa.dictionary(pa.int32(), pa.string())),  # JPEG, PNG, ...
        ("mode", pa.dictionary(pa.int32(), pa.string())),  # RGB, L (greyscale), CMYK, ...
    ]
)
# The same columns without dictionaries, which differ between files.
PLAIN = pa.schema(
    [
        (field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
        for field in SCHEMA
    ]
)
_INTEGERS = ("offset", "length", "label", "width", "height")


@dataclass(frozen=True)
class Metadata:
    """The properties that all rows of an index share."""

    root: str  # folder that the ``file`` column is relative to
    classes: Classes
    file_sizes: dict[str, int]  # bytes of each archive when it was indexed; not for single images
    content_hash: str | None = None  # see `pipeline.data.content_hash`; None: no need

    def to_json(self) -> bytes:
        """The value of `METADATA_KEY` in the file."""
        values = {
            "version": VERSION,
            "root": self.root,
            "classes": self.classes.names,
            "class_ids": self.classes.identities,
            "file_sizes": self.file_sizes,
        }
        if self.content_hash is not None:
            values["content_hash"] = self.content_hash
        return json.dumps(values).encode()


def read_metadata(schema: pa.Schema, where: str) -> Metadata:
    """The metadata of an index.

    Args:
        schema: the schema of the Parquet file.
        where: the option and the file, for messages.

    Raises:
        UserError: the metadata is missing, damaged, or of another version.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise UserError(f"{where} is a Parquet file but not an index of tools/index.py")
    try:
        values = json.loads(raw)
    except ValueError:
        raise UserError(f"{where} has damaged metadata; {REMEDY}") from None
    if not isinstance(values, dict) or "version" not in values:
        raise UserError(f"{where} has damaged metadata (no version); {REMEDY}")
    if values["version"] != VERSION:
        raise UserError(
            f"{where} is an index of version {values['version']}, this program reads version "
            f"{VERSION}; {REMEDY}"
        )
    damaged = _damaged_keys(values)
    if damaged:
        raise UserError(f"{where} has damaged metadata ({', '.join(damaged)}); {REMEDY}")
    classes = Classes(values["classes"], values.get("class_ids"))
    return Metadata(values["root"], classes, values["file_sizes"], values.get("content_hash"))


def _damaged_keys(values: dict[str, Any]) -> list[str]:
    """Keys of the metadata that are missing or have a value of another kind."""
    names, ids = values.get("classes"), values.get("class_ids")
    sizes = values.get("file_sizes")
    problems = {
        "root": not isinstance(values.get("root"), str),
        "classes": not is_list_of_strings(names) or not names,
        "class_ids": ids is not None
        and not (is_list_of_strings(ids) and is_list_of_strings(names) and len(ids) == len(names)),
        "file_sizes": not isinstance(sizes, dict)
        or not all(isinstance(size, int) and size >= 0 for size in sizes.values()),
        "content_hash": not isinstance(values.get("content_hash", ""), str),
    }
    return [name for name, is_damaged in problems.items() if is_damaged]


def check_columns(table: pa.Table, where: str) -> pa.Table:
    """The table with the columns and the types of `SCHEMA`.

    Raises:
        UserError: a column is missing, of another type, or has empty cells.
    """
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{where} lacks the columns {', '.join(missing)}; {REMEDY}")
    columns = {}
    for field in SCHEMA:
        column = table[field.name]
        is_integer = field.name in _INTEGERS
        if not (pa.types.is_integer(column.type) if is_integer else _is_text(column.type)):
            kind = "integers" if is_integer else "strings"
            raise UserError(
                f"{where}: its column {field.name} holds {column.type}, not {kind}; {REMEDY}"
            )
        if column.null_count:
            raise UserError(
                f"{where}: {column.null_count} of {len(column)} rows have no {field.name}; {REMEDY}"
            )
        try:
            if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
                column = column.cast(pa.string()).dictionary_encode()
            columns[field.name] = column.cast(field.type)
        except pa.ArrowException as error:
            raise UserError(
                f"{where}: its column {field.name} cannot be read ({first_line(error)}); {REMEDY}"
            ) from None
    return pa.table(columns)


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value)


def check_rows(table: pa.Table, metadata: Metadata, where: str) -> None:
    """Refuse rows with impossible values.

    Args:
        table: the result of `check_columns`.
        metadata: the metadata of the same index.
        where: the option and the file, for messages.

    Raises:
        UserError: there are such rows; names the first one.
    """
    values: dict[str, Any] = {name: table[name].to_numpy() for name in _INTEGERS}
    num_classes = len(metadata.classes)
    file = table["file"].combine_chunks()
    names = file.dictionary.to_pylist()
    unlimited = np.iinfo(np.int64).max  # for files that are not archives
    sizes = np.array([metadata.file_sizes.get(name, unlimited) for name in names])
    end = values["offset"] + values["length"]
    is_wrong = {
        f"a label outside its {num_classes} classes": (values["label"] < 0)
        | (values["label"] >= num_classes),
        "a negative offset or no bytes": (values["offset"] < 0) | (values["length"] < 1),
        "bytes beyond the end of its archive": end > sizes[file.indices.to_numpy()],
        "no width or height": (values["width"] < 1) | (values["height"] < 1),
    }
    for problem, rows in is_wrong.items():
        if rows.any():
            first = table["id"][int(np.argmax(rows))].as_py()
            raise UserError(
                f"{where}: {int(rows.sum())} of {len(table)} images have {problem}, first {first}; "
                f"{REMEDY}"
            )
