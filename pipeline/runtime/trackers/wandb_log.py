"""Reads the files in which W&B stores a run on the disk, OUTPUT/wandb/*/run-ID.wandb.

A killed run loses what W&B has not written to this file yet. The file has a header of seven bytes,
and then records in LevelDB's log format: blocks of 32 KiB, with pieces of records in them.
"""

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_HEADER_SIZE = 7  # bytes
_BLOCK_SIZE = 32_768  # bytes
_PIECE = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _LAST = 1, 4  # kinds of the pieces that end a record


def read_records(path: Path) -> Iterator[Any]:
    """The records of a file, as W&B's `Record` messages; a file that is cut short ends earlier."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    for content in _read_pieces(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        yield record


def last_row(folder: Path, run_id: str) -> int:
    """The number of the last row of a run's history in the files of a folder; -1: none."""
    files = folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    records = (record for file in files for record in read_records(file))
    rows = (r.history.step.num for r in records if r.WhichOneof("record_type") == "history")
    return max(rows, default=-1)


def _read_pieces(content: bytes) -> Iterator[bytes]:
    """The records of a file, as bytes."""
    if not content.startswith(_MAGIC):
        return
    position, record = _HEADER_SIZE, b""
    while position + _PIECE.size <= len(content):
        left = _BLOCK_SIZE - position % _BLOCK_SIZE
        if left < _PIECE.size:  # padding at the end of a block
            position += left
            continue
        _, length, kind = _PIECE.unpack_from(content, position)
        begin = position + _PIECE.size
        position = begin + length
        if position > len(content):
            return
        record += content[begin:position]
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""
