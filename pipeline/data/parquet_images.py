"""The positions of images inside uncompressed Parquet files.

Parquet stores the bytes of a value as they are, unless its column is compressed: in PLAIN pages and
in dictionaries behind the value's length, in DELTA_LENGTH_BYTE_ARRAY pages behind all lengths. So a
value that pyarrow has read is found in the mapped file, usually directly behind the previous one,
and all of its bytes are compared. The headers of pages need not be parsed.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parquet_files import FileFacts, opened, rows_at_once
from pipeline.data.parquet_rows import FileRows
from pipeline.data.scan_rows import Member, ReportProgress, Scan
from pipeline.data.shards import ShardFiles
from pipeline.data.tar_members import file_size
from pipeline.errors import UserError

_LENGTH = 4  # bytes of the length in front of a value in PLAIN pages


def scan_images(
    files: ShardFiles,
    facts: Sequence[FileFacts],
    rows: Sequence[FileRows],
    progress: ReportProgress = lambda _: None,
) -> Scan:
    """Scan the images of Parquet files; the column of the images is not compressed.

    Args:
        files: the files.
        facts: from `pipeline.data.parquet_files.read_facts`, for each file.
        rows: from `pipeline.data.parquet_rows.read_rows`, for each file.
        progress: called with the number of bytes scanned so far.

    Raises:
        UserError: a file cannot be read, or a row has the path of an image instead of its bytes.
    """
    scan, done = Scan(), 0
    shards = files.archives.items()
    for (name, path), file_facts, file_rows in zip(shards, facts, rows, strict=True):
        with path.open("rb") as source:
            positions = image_positions(path, file_facts)
            columns = (file_rows.ids, file_rows.labels, file_rows.paths, positions)
            for row, values in enumerate(zip(*columns, strict=True)):
                image_id, label, stored_path, position = values
                if position is not None:
                    scan.add(Member(image_id, name, *position, label), source)
                    progress(done + sum(position))
                elif stored_path is None:
                    scan.reject(image_id, name, "no image")
                else:
                    raise UserError(
                        f"{path}: row {row} has only the path of an image, {stored_path}, and not "
                        "its bytes; write the file again with them, as to_parquet of Hugging "
                        "Face's datasets does"
                    )
        done += file_size(path)
    return scan


def image_positions(path: Path, facts: FileFacts) -> Iterator[tuple[int, int] | None]:
    """Offset and length in bytes of each row's image in the file; None for a row without an image.

    Raises:
        UserError: the file cannot be read, or the bytes of an image are not in it as they are.
    """
    with (
        opened(path) as file,
        path.open("rb") as raw,
        mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as memory,
    ):
        row = 0
        for group in range(file.num_row_groups):
            chunk = _chunk(file.metadata, group, facts.leaf)
            finder = _Finder(memory, chunk)
            size = rows_at_once(chunk.num_values, chunk.total_uncompressed_size)
            for batch in file.iter_batches(size, row_groups=[group], columns=[facts.leaf]):
                for value in pa.Table.from_batches([batch]).flatten().column(0):
                    yield finder.position(value.as_py(), f"{path}: row {row}")
                    row += 1


def _chunk(metadata: pq.FileMetaData, group: int, leaf: str) -> pq.ColumnChunkMetaData:
    columns = metadata.row_group(group)
    chunks = (columns.column(k) for k in range(columns.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == leaf)


class _Finder:
    """Finds the values of one column chunk in a file, in their order."""

    def __init__(self, memory: mmap.mmap, chunk: pq.ColumnChunkMetaData) -> None:
        self._memory = memory
        starts = (chunk.dictionary_page_offset, chunk.data_page_offset)
        self._start: int = min(start for start in starts if start)  # None or 0: no such page
        self._end: int = self._start + chunk.total_compressed_size
        self._next = self._start  # the byte behind the latest value that was found
        # Repeated values are stored once in a dictionary. The keys are hashes of values.
        self._offsets: dict[int, int] = {}

    def position(self, value: bytes | None, row: str) -> tuple[int, int] | None:
        """Offset and length of a value in the file; None for None.

        Args:
            value: the bytes, as pyarrow has read them.
            row: the file and the row, for messages.

        Raises:
            UserError: the bytes are not in the column chunk.
        """
        if value is None:
            return None
        offset = self._find(value)
        if offset < 0:
            raise UserError(
                f"{row}: the bytes of its image are not in the file as they are; run again with "
                "--repack DIR, which writes an uncompressed copy"
            )
        self._next = max(self._next, offset + len(value))
        self._offsets[hash(value)] = offset
        return offset, len(value)

    def _find(self, value: bytes) -> int:
        """The position of a value's first byte; -1 if the value is not in the chunk."""
        likely = [self._next + _LENGTH, self._next]
        if hash(value) in self._offsets:
            likely.append(self._offsets[hash(value)])
        for offset in likely:
            end = min(offset + len(value), self._end)
            if self._memory.find(value, offset, end) == offset:
                return offset
        behind = self._memory.find(value, self._next, self._end)  # behind the header of a page
        return behind if behind >= 0 else self._memory.find(value, self._start, self._end)
