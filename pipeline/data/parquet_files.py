"""Parquet files of images, as Hugging Face's datasets library writes them: what they state.

A row has an image (a struct of ``bytes`` and ``path``, or plain bytes) and an integer label. The
names of the classes are in the schema's metadata.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.classes import Classes, is_list_of_strings
from pipeline.data.index_format import METADATA_KEY
from pipeline.data.shards import ShardFiles
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError, first_few, first_line

_HUGGING_FACE = b"huggingface"  # key of the schema's metadata
_BYTES, _PATH = "bytes", "path"  # fields of an image
_BATCH = 2**26  # bytes of images that are read at once
_MAGIC = {b"PARE": "is encrypted", b"vers": "is a pointer of Git LFS; download it: git lfs pull"}


@dataclass(frozen=True)
class ParquetShards(ShardFiles):
    """Parquet files in natural order, and the names of their columns.

    Attributes:
        classes: the classes that the labels number. None: those that the files name, or else the
            numbers 0 to the largest.
        image_key: column of the images.
        label_key: column of the labels.
    """

    classes: Classes | None = None
    image_key: str = "image"
    label_key: str = "label"


@dataclass(frozen=True)
class FileFacts:
    """What the end of a Parquet file states.

    Attributes:
        num_rows: number of rows.
        leaf: dotted name of the column with the images' bytes.
        path_leaf: dotted name of the column with the images' paths; None without one.
        types: the types of the two columns, as text.
        class_names: the names of the labels; None if the file has none.
        num_bytes: bytes of the images' column, decompressed.
        num_stored_bytes: bytes of the images' column in the file.
        obstacle: why the bytes of an image are not in the file as they are; empty if they are.
    """

    num_rows: int
    leaf: str
    path_leaf: str | None
    types: str
    class_names: list[str] | None
    num_bytes: int
    num_stored_bytes: int
    obstacle: str


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        UserError: it is missing, not a Parquet file, encrypted or cut short, or cannot be read in
            the block.
    """
    size = file_size(path)
    try:
        with path.open("rb") as raw:
            begin = raw.read(4)
        if begin in _MAGIC or begin != b"PAR1" or size < 12:
            state = _MAGIC.get(begin, "is not a Parquet file; is the download complete?")
            raise UserError(f"{path} {state}")
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet ({first_line(error)}); is the download complete?"
        ) from None


def read_facts(shards: ParquetShards) -> list[FileFacts]:
    """Read what the end of each file states.

    Raises:
        UserError: a file cannot be read, lacks a column, has a column of another type, or differs
            from the first one in the types or the classes.
    """
    facts = [_read_facts(path, shards) for path in shards.paths]
    for path, other in zip(shards.paths, facts, strict=True):
        for kind in ("types", "class_names"):
            value, expected = getattr(other, kind), getattr(facts[0], kind)
            if value != expected:
                text = value if kind == "types" else _first_difference(expected, value)
                raise UserError(
                    f"{shards.paths[0]} and {path} have different "
                    f"{'columns' if kind == 'types' else 'classes'}: in {path} {text}; index the "
                    "files of one data set"
                )
    return facts


def _first_difference(expected: list[str] | None, names: list[str] | None) -> str:
    if names is None or expected is None:
        return "no classes are named" if names is None else f"{len(names):,} classes are named"
    shared = zip(expected, names, strict=False)
    label = next((k for k, (a, b) in enumerate(shared) if a != b), None)
    if label is None:
        return f"there are {len(names):,} classes, not {len(expected):,}"
    return f"label {label} is {names[label]!r}, not {expected[label]!r}"


def _read_facts(path: Path, shards: ParquetShards) -> FileFacts:
    with opened(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        columns = [metadata.schema.column(k).path for k in range(metadata.num_columns)]
        stated = schema.metadata or {}
        if METADATA_KEY in stated:
            raise UserError(f"{path} is an index of tools/index.py; give the files with the images")
        image = _column_type(path, schema, "image-key", shards.image_key)
        label = _column_type(path, schema, "label-key", shards.label_key)
        if not pa.types.is_integer(label):
            raise UserError(
                f"{path}: its column {shards.label_key} holds {label}, not class numbers (0, 1, "
                "...); name another column by --label-key, or write the file again with numbers"
            )
        leaf, path_leaf = _leaves(path, shards.image_key, image)
        chunks = [
            metadata.row_group(k).column(columns.index(leaf)) for k in range(file.num_row_groups)
        ]
        return FileFacts(
            metadata.num_rows,
            leaf,
            path_leaf,
            f"{shards.image_key} holds {image} and {shards.label_key} {label}",
            _class_names(stated.get(_HUGGING_FACE), shards.label_key),
            sum(chunk.total_uncompressed_size for chunk in chunks),
            sum(chunk.total_compressed_size for chunk in chunks),
            next(filter(None, map(_obstacle, chunks)), ""),
        )


def _column_type(path: Path, schema: pa.Schema, option: str, name: str) -> pa.DataType:
    if schema.names.count(name) != 1:
        raise UserError(
            f"{path} has no column {name!r}; its columns are: {first_few(schema.names)}; name the "
            f"one of the {option.removesuffix('-key')}s by --{option}"
        )
    return schema.field(name).type


def _leaves(path: Path, name: str, image: pa.DataType) -> tuple[str, str | None]:
    """Dotted names of the columns with the bytes and the path of an image."""
    if _is_binary(image):
        return name, None
    fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    if _BYTES not in fields or not _is_binary(fields[_BYTES]):
        raise UserError(
            f"{path}: its column {name} holds {image}, not images (bytes, or a struct with the "
            "field bytes); name another column by --image-key, or write the file again with the "
            "images' bytes"
        )
    has_path = _PATH in fields and _is_text(fields[_PATH])
    return f"{name}.{_BYTES}", f"{name}.{_PATH}" if has_path else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _obstacle(chunk: pq.ColumnChunkMetaData) -> str:
    """Why the values of a column chunk are not stored as they are; empty if they are.

    Of the encodings of byte arrays, only DELTA_BYTE_ARRAY divides a value: it stores the beginning
    that a value shares with the previous one only once.
    """
    if chunk.compression != "UNCOMPRESSED":
        return f"compressed with {chunk.compression}"
    return "encoded with DELTA_BYTE_ARRAY" if "DELTA_BYTE_ARRAY" in chunk.encodings else ""


def _class_names(raw: bytes | None, label_key: str) -> list[str] | None:
    """The names in the metadata of Hugging Face's datasets library; None without any."""
    try:
        values = json.loads(raw or b"null")
    except ValueError:
        return None
    for key in ("info", "features", label_key, "names"):
        values = values.get(key) if isinstance(values, dict) else None
    return values if is_list_of_strings(values) and values else None


def rows_at_once(num_rows: int, num_bytes: int) -> int:
    """How many rows to read at once, so that their images take about 64 MiB.

    Args:
        num_rows: number of rows of the file or row group.
        num_bytes: bytes of their images.
    """
    return max(1, min(num_rows, _BATCH * num_rows // max(1, num_bytes)))
