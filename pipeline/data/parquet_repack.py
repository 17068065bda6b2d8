"""Copies of Parquet files whose images are not compressed, so that they can be read in place."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parquet_files import FileFacts, ParquetShards, opened, rows_at_once
from pipeline.data.scan_rows import ReportProgress
from pipeline.errors import UserError, first_line
from pipeline.runtime.files import atomic_write, remove_abandoned, writable

_KEY = b"deep_defense_copy_of"  # key of a copy's metadata, which identifies the original
_ROW_GROUP = 2**26  # bytes of images in a row group of a copy, at most, unless one image has more


@dataclass(frozen=True)
class Copy:
    """A file to copy."""

    source: Path
    target: Path
    facts: FileFacts  # of the source

    def is_complete(self) -> bool:
        """Whether the target is a copy of the source as it is now. Copies are written atomically.

        A target that is not complete may be replaced: it is absent, or a copy of an earlier state
        of the source.

        Raises:
            UserError: the target exists and is another file, or the copy of another file.
        """
        if not self.target.exists():
            return False
        try:
            metadata = pq.read_schema(self.target).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"--repack: {self.target} exists and cannot be read ({first_line(error)}); give "
                "another folder"
            ) from None
        if _KEY not in metadata:
            raise UserError(
                f"--repack: {self.target} exists and is not a copy of an earlier --repack; give "
                "another folder"
            )
        stored = json.loads(metadata[_KEY])
        original = stored.pop("path", None)  # earlier versions did not store it
        if stored == _identity(self.source):
            return True  # also of a data set that was moved
        if original != os.path.abspath(self.source):
            raise UserError(
                f"--repack: {self.target} is the copy of {original or 'another file'}, not of "
                f"{self.source}; give another folder, or delete the copy"
            )
        return False

    @property
    def num_bytes(self) -> int:
        """Size of the copy, in bytes; an estimate, since the other columns are compressed again."""
        num_others = self.source.stat().st_size - self.facts.num_stored_bytes
        return num_others + self.facts.num_bytes


def plan_copies(shards: ParquetShards, facts: Sequence[FileFacts], folder: Path) -> list[Copy]:
    """The copies of the files that cannot be read in place, complete ones included.

    A copy has the name of its original, relative to the folder that contains all originals.
    """
    names = zip(shards.archives.items(), facts, strict=True)
    root = Path(os.path.abspath(folder))
    return [Copy(path, root / name, facts) for (name, path), facts in names if facts.obstacle]


def check_space(copies: Sequence[Copy], folder: Path) -> None:
    """Refuse to write more than the disk can take.

    Args:
        copies: the copies that are not complete yet.
        folder: the folder that they are written to, which need not exist.

    Raises:
        UserError: the free space is too small.
    """
    remove_abandoned(folder)  # of a command that was killed
    parent = Path(os.path.abspath(folder))
    while not parent.is_dir():
        parent = parent.parent
    needed, free = sum(copy.num_bytes for copy in copies), shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"--repack {folder}: the copies need about {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free; give a folder with more space"
        )


def write_copies(copies: Sequence[Copy], progress: ReportProgress = lambda _: None) -> None:
    """Write copies with the columns and metadata of the originals, and uncompressed images.

    Args:
        copies: the copies that are not complete yet.
        progress: called with the bytes of images written so far.

    Raises:
        UserError: an original cannot be read, or a copy cannot be written.
    """
    done = 0
    for copy in copies:
        remedy = "give another folder by --repack, or free some space and run again to resume"
        with writable(copy.target, remedy):
            _write(copy, progress, done)
        done += copy.facts.num_bytes


def _write(copy: Copy, progress: ReportProgress, done: int) -> None:
    """Write one copy; ``done`` bytes of images have been written before."""
    leaf = copy.facts.leaf
    with opened(copy.source) as file:
        schema, columns = file.schema_arrow, file.metadata.schema
        others = [columns.column(k).path for k in range(len(columns))]
    others.remove(leaf)
    original = {**_identity(copy.source), "path": os.path.abspath(copy.source)}
    added = {_KEY: json.dumps(original).encode()}
    schema = schema.with_metadata({**(schema.metadata or {}), **added})
    settings: dict[str, Any] = {
        "compression": {leaf: "none", **dict.fromkeys(others, "snappy")},
        "column_encoding": {leaf: "PLAIN"},
        "use_dictionary": others,
        "write_statistics": others,
    }
    with (
        atomic_write(copy.target) as partial,
        pq.ParquetWriter(partial, schema, **settings) as writer,
    ):
        for batch in _batches(copy):
            rows = max(1, _ROW_GROUP * batch.num_rows // max(1, batch.nbytes))
            writer.write_batch(batch, row_group_size=rows)
            done += batch.nbytes
            progress(done)


def _batches(copy: Copy) -> Iterator[pa.RecordBatch]:
    """The rows of the original. Only errors of reading are raised here, not those of writing."""
    with opened(copy.source) as file:
        size = rows_at_once(copy.facts.num_rows, copy.facts.num_bytes)
        yield from file.iter_batches(size)


def _identity(path: Path) -> dict[str, Any]:
    """Identifies the state of a Parquet file: its size, and a hash of the metadata at its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = min(int.from_bytes(file.read(4), "little") + 8, size)
        file.seek(-length, os.SEEK_END)
        footer = hashlib.sha256(file.read()).hexdigest()
    return {"bytes": size, "footer": footer}
