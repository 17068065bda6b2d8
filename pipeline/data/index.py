"""The sample index: one row an image, naming its bytes inside an archive or folder.

A Parquet file with the columns of `SCHEMA` and, as metadata, the schema's version, the folder
that the `file` column is relative to, the class names and the sizes of the archives. Written by
tools/index.py through `pipeline.data.scan`; read by every rank.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.atomic import replacing
from pipeline.errors import UserError, brief

VERSION = 1
METADATA_KEY = b"deep_defense_index"
ARRAY = "FLOAT32"  # format of rows whose bytes are a (C, height, width) array, normalised already

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique; the member's or file's path
        ("file", pa.dictionary(pa.int32(), pa.string())),  # relative to the metadata's root
        ("offset", pa.int64()),  # of the image's first byte in that file
        ("length", pa.int32()),  # in bytes
        ("label", pa.int32()),  # 0..num_classes-1
        ("width", pa.int32()),  # in pixels, as stored (EXIF orientation is not applied)
        ("height", pa.int32()),
        ("format", pa.dictionary(pa.int32(), pa.string())),  # what the bytes are: JPEG, PNG, ...
        ("mode", pa.dictionary(pa.int32(), pa.string())),  # RGB, L (greyscale), CMYK, ...
    ]
)
# The same without dictionaries, which differ between files.
_PLAIN = pa.schema(
    [
        (field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
        for field in SCHEMA
    ]
)


@dataclass(frozen=True)
class Index:
    """An index in memory: numpy columns of N rows, and ids kept as one Arrow array.

    About 90 bytes an image, so that all of ILSVRC-2012 fits in a rank's memory many times.
    """

    path: str
    root: Path
    class_names: list[str]
    files: list[str]  # F distinct names, relative to root
    file_sizes: dict[str, int]  # of archives only, in bytes, when they were indexed
    file: np.ndarray  # (N,) int32, position in files
    offset: np.ndarray  # (N,) int64
    length: np.ndarray  # (N,) int32
    label: np.ndarray  # (N,) int32
    width: np.ndarray  # (N,) int32
    height: np.ndarray  # (N,) int32
    arrays: np.ndarray  # (N,) bool, float32 arrays in the net's input space instead of images
    ids: pa.ChunkedArray  # (N,) strings

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def num_classes(self) -> int:
        """Number of classes that labels count over."""
        return len(self.class_names)

    def id(self, row: int) -> str:
        """Id of one image."""
        return self.ids[int(row)].as_py()

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of which images with which labels, in which order; not of where they lie."""
        digest = hashlib.sha256()
        for column in (self.offset, self.length, self.label):
            digest.update(np.ascontiguousarray(column))
        return digest.hexdigest()[:16]

    def subset(self, number: int | None) -> np.ndarray:
        """Rows of ``number`` evenly spaced images (all for None), the same on every rank."""
        return evenly_spaced(len(self), number)


def evenly_spaced(total: int, number: int | None) -> np.ndarray:
    """``number`` positions among ``total``, evenly spaced; all for None."""
    if number is None or number >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, number).round().astype(np.int64)


def write(
    path: Path,
    rows: pa.Table,
    root: Path,
    class_names: list[str],
    archives: Mapping[str, Path] | None = None,
) -> None:
    """Write an index atomically.

    Args:
        path: the Parquet file to write.
        rows: a table with the columns of `SCHEMA`.
        root: folder that the ``file`` column is relative to.
        class_names: name of each label, in order.
        archives: which of the files are archives, and where they are now: sizes are recorded.
    """
    metadata = {
        "version": VERSION,
        "root": str(root),
        "classes": class_names,
        "file_sizes": {n: os.path.getsize(a) for n, a in (archives or {}).items()},
    }
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    table = rows.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(schema.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read(path: str, root: str | None = None, option: str = "data.train") -> Index:
    """Load an index.

    Args:
        path: the Parquet file.
        root: folder of the archives or images, if it is not the recorded one (``--data.root``).
        option: name of the option that gave ``path``, for messages.

    Raises:
        UserError: the file is missing, empty, cut short, or not an index of this version.
    """
    if not Path(path).is_file():
        raise UserError(f"{option}: no file {path}; make an index with tools/index.py")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{option}: {path} cannot be read as an index ({brief(error)}); "
            "make it again with tools/index.py"
        ) from None
    metadata = _metadata(table.schema, path, option)
    if len(table) == 0:
        raise UserError(f"{option}: {path} holds no images; make it again with tools/index.py")
    file = table["file"].combine_chunks()
    column = {
        name: table[name].to_numpy() for name in ("offset", "length", "label", "width", "height")
    }
    return Index(
        path=str(path),
        root=Path(root if root is not None else metadata["root"]),
        class_names=metadata["classes"],
        files=file.dictionary.to_pylist(),
        file_sizes=metadata["file_sizes"],
        file=file.indices.to_numpy(),
        ids=table["id"],
        arrays=pc.equal(table["format"].cast(pa.string()), ARRAY).to_numpy(),
        **column,
    )


def _metadata(schema: pa.Schema, path: str, option: str) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise UserError(f"{option}: {path} is a Parquet file but no index of tools/index.py")
    metadata = json.loads(raw)
    if metadata["version"] != VERSION:
        raise UserError(
            f"{option}: {path} is an index of version {metadata['version']}, this program reads "
            f"version {VERSION}; make it again with tools/index.py"
        )
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise UserError(f"{option}: {path} lacks the columns {', '.join(missing)}")
    return metadata


def join(paths: list[Path], target: Path) -> int:
    """Write an index of the images of several, in their order; the number of images.

    Raises:
        UserError: one cannot be read, or their classes differ.
    """
    found = [read(str(path), option="index") for path in paths]
    for path, other in zip(paths, found, strict=True):
        if other.class_names != found[0].class_names:
            raise UserError(f"{paths[0]} and {path} are of other classes; they cannot be joined")
    root = Path(os.path.commonpath([each.root.resolve() for each in found]))
    tables, archives = [], {}
    for path, each in zip(paths, found, strict=True):
        table = pq.read_table(path)
        place = os.path.relpath(each.root.resolve(), root)
        files = [os.path.normpath(os.path.join(place, name)) for name in table["file"].to_pylist()]
        position = table.schema.get_field_index("file")
        tables.append(table.set_column(position, "file", pa.array(files)).replace_schema_metadata())
        for name in each.file_sizes:
            archive = each.root / name
            if not archive.is_file():
                raise UserError(f"no file {archive}, named in {path}; index it where it is now")
            archives[os.path.normpath(os.path.join(place, name))] = archive
    rows = pa.concat_tables([table.cast(_PLAIN) for table in tables])
    write(target, rows, root, found[0].class_names, archives)
    return len(rows)


def check_labels(index: Index, num_classes: int) -> None:
    """Refuse labels that the net has no output for.

    Raises:
        UserError: naming the first such image.
    """
    bad = np.flatnonzero((index.label < 0) | (index.label >= num_classes))
    if len(bad):
        raise UserError(
            f"{index.path}: {len(bad)} labels lie outside the net's {num_classes} classes, first "
            f"{index.id(bad[0])} with label {index.label[bad[0]]}; "
            "set model.num_classes or use another index"
        )
