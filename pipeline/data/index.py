"""The index of a data set: one row for each image, with the position of its bytes in a file.

A Parquet file with the columns of `SCHEMA`. Its metadata are the schema's version, the folder that
the `file` column is relative to, the classes and the sizes of the archives. tools/index.py writes
it through `pipeline.data.scan`; every rank reads it.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.text import did_you_mean_file
from pipeline.data import classes as class_lists
from pipeline.data import content_hash
from pipeline.data.classes import Classes
from pipeline.data.index_format import (
    METADATA_KEY,
    PLAIN,
    REMEDY,
    SCHEMA,
    Metadata,
    check_columns,
    check_rows,
    read_metadata,
)
from pipeline.errors import UserError, first_line, warn
from pipeline.runtime.files import atomic_write

# The format of rows whose bytes are a (C, height, width) array in the net's input space.
FLOAT32_ARRAY = "FLOAT32"


@dataclass(frozen=True)
class Index:
    """An index in memory: numpy columns of N rows, and the ids as one Arrow array.

    It holds about 64 bytes per image, 82 MB for ILSVRC-2012; reading it takes up to 160 bytes per
    image.
    """

    path: str
    root: Path
    classes: Classes  # K, in the order of the labels
    files: list[str]  # F distinct names, relative to root
    file_sizes: dict[str, int]  # bytes of each archive when it was indexed; not for single images
    file: np.ndarray  # (N,) int32, position in files
    offset: np.ndarray  # (N,) int64
    length: np.ndarray  # (N,) int32
    label: np.ndarray  # (N,) int32
    width: np.ndarray  # (N,) int32
    height: np.ndarray  # (N,) int32
    is_array: np.ndarray  # (N,) bool, float32 arrays in the net's input space instead of images
    ids: pa.ChunkedArray  # (N,) strings
    content_hash: str | None  # of images whose lengths do not identify them

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """Name of each label, for display."""
        return self.classes.names

    def id(self, row: int) -> str:
        """Id of one image."""
        return self.ids[int(row)].as_py()

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the images, their labels and order; independent of the files' location."""
        digest = hashlib.sha256()
        for column in (self.offset, self.length, self.label):
            digest.update(np.ascontiguousarray(column).data)
        if self.content_hash is not None:
            digest.update(self.content_hash.encode())
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
    classes: Classes | list[str],
    archives: Mapping[str, Path] | None = None,
) -> None:
    """Write an index atomically.

    Args:
        path: the Parquet file to write.
        rows: a table with the columns of `SCHEMA`.
        root: folder that the ``file`` column is relative to.
        classes: in the order of the labels; plain names are the classes' ids too.
        archives: paths of the files that are archives; their sizes are recorded.

    Raises:
        UserError: ``path`` exists and is not an index.
    """
    refuse_other_file(path)
    sizes = {name: os.path.getsize(archive) for name, archive in (archives or {}).items()}
    if not isinstance(classes, Classes):
        classes = Classes(classes)
    table = rows.select(SCHEMA.names).cast(SCHEMA)
    hashed = None
    if content_hash.is_needed(table["length"].to_numpy()):
        some = table.take(evenly_spaced(len(table), content_hash.NUM_IMAGES))
        hashed = content_hash.content_hash(some, root, archives or {})
    metadata = Metadata(str(root), classes, sizes, hashed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        with_metadata = table.replace_schema_metadata({METADATA_KEY: metadata.to_json()})
        pq.write_table(with_metadata, partial, compression="zstd", write_page_checksum=True)


def refuse_other_file(path: Path) -> None:
    """Refuse to replace a file that is not an index, such as the archive itself.

    Raises:
        UserError: ``path`` is such a file.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (pa.ArrowException, OSError):
            return  # a damaged index, which may be replaced
        is_parquet = METADATA_KEY in metadata
    if not is_parquet:
        raise UserError(f"{path} exists and is not an index; remove it, or give another --out")


def read(path: str, root: str | None = None, option: str = "data.train") -> Index:
    """Load an index.

    Args:
        path: the Parquet file.
        root: folder of the archives or images (``--data.root``); None: the recorded one.
        option: name of the option whose value is ``path``, for messages.

    Raises:
        UserError: the file is missing, empty, damaged, or not an index of this version.
    """
    where = f"{option}: {path}"
    if not Path(path).is_file():
        hint = did_you_mean_file(Path(path)) or "; make an index with tools/index.py"
        raise UserError(f"{option}: no file {path}{hint}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        _ = table.column_names  # decodes them, which may fail
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where} cannot be read as an index ({first_line(error)}); {REMEDY}"
        ) from None
    metadata = read_metadata(table.schema, where)
    table = check_columns(table, where)
    if len(table) == 0:
        raise UserError(f"{where} holds no images; {REMEDY}")
    check_rows(table, metadata, where)
    file = table["file"].combine_chunks()
    column = {
        name: table[name].to_numpy() for name in ("offset", "length", "label", "width", "height")
    }
    return Index(
        path=str(path),
        root=Path(root if root is not None else metadata.root),
        classes=metadata.classes,
        files=file.dictionary.to_pylist(),
        file_sizes=metadata.file_sizes,
        file=file.indices.to_numpy(),
        ids=table["id"],
        is_array=_equals(table["format"], FLOAT32_ARRAY),
        content_hash=metadata.content_hash,
        **column,
    )


def recorded_root(path: str) -> str:
    """The folder that an index records for its images.

    Raises:
        UserError: the file is not an index of this version.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as an index ({first_line(error)})") from None
    return read_metadata(schema, path).root


def _equals(column: pa.ChunkedArray, text: str) -> np.ndarray:
    """Whether each row of a column of dictionary-encoded strings equals ``text``; (N,) bool."""
    encoded = column.combine_chunks()
    is_text = np.array([value == text for value in encoded.dictionary.to_pylist()])
    return is_text[encoded.indices.to_numpy()]


def join(paths: list[Path], target: Path) -> int:
    """Write one index of the images of several indices, in their order.

    Returns:
        The number of images.

    Raises:
        UserError: an index cannot be read or is listed twice, ``target`` is one of them, or their
            classes differ.
    """
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise UserError(
                f"{paths[position]} is listed twice; each of its images would count twice"
            )
    if target.resolve() in resolved:
        raise UserError(f"--out {target} is one of the indices to join; give another --out")
    indices = [read(str(path), option="index") for path in paths]
    for path, index in zip(paths, indices, strict=True):
        changed = class_lists.difference(index.classes, indices[0].classes)
        if changed:
            raise UserError(
                f"{paths[0]} and {path} have different classes and cannot be joined: in {path} "
                f"{changed}; index both with the same --classes"
            )
    root = Path(os.path.commonpath([index.root.resolve() for index in indices]))
    tables, archives = [], {}
    for path, index in zip(paths, indices, strict=True):
        table = check_columns(pq.read_table(path), f"index: {path}").cast(PLAIN)
        folder = os.path.relpath(index.root.resolve(), root)
        files = [os.path.normpath(os.path.join(folder, name)) for name in table["file"].to_pylist()]
        tables.append(table.set_column(table.column_names.index("file"), "file", pa.array(files)))
        for name in index.file_sizes:
            archive = index.root / name
            if not archive.is_file():
                raise UserError(
                    f"no file {archive}, which {path} refers to; index it where it is now"
                )
            if archive.stat().st_size != index.file_sizes[name]:
                raise UserError(
                    f"{archive} has another size than when {path} was made; index it again"
                )
            archives[os.path.normpath(os.path.join(folder, name))] = archive
    rows = pa.concat_tables(tables)
    _warn_of_repeats(rows, target)
    write(target, rows, root, indices[0].classes, archives)
    return len(rows)


def _warn_of_repeats(rows: pa.Table, target: Path) -> None:
    """Warn if images are in several of the joined indices."""
    images = rows.group_by(["file", "offset"]).aggregate([])
    repeats = len(rows) - len(images)
    if repeats:
        warn(f"{target}: {repeats:,} images are in several of these indices and count repeatedly")


def check_labels(index: Index, num_classes: int) -> None:
    """Refuse labels that the net has no output for.

    Raises:
        UserError: there are such labels; names the first image.
    """
    bad = np.flatnonzero((index.label < 0) | (index.label >= num_classes))
    if len(bad):
        raise UserError(
            f"{index.path}: {len(bad)} labels are outside the net's {num_classes} classes, first "
            f"{index.id(bad[0])} with label {index.label[bad[0]]}; "
            "set model.num_classes or use another index"
        )
