"""Rows of an index during a scan: images by their headers, and the members left out."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.data.classes import Classes
from pipeline.data.image_check import ImageFacts, NotDecodable, look

ReportProgress = Callable[[int], None]  # called with the amount done so far


class Member(NamedTuple):
    """The position of one image's bytes, and its label."""

    id: str
    file: str
    offset: int
    length: int
    label: int


@dataclass
class Scan:
    """The rows so far, as columns, and the members left out."""

    columns: dict[str, list] = field(
        default_factory=lambda: {name: [] for name in (*Member._fields, *ImageFacts._fields)}
    )
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (member, reason)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def table(self) -> pa.Table:
        """The rows as an Arrow table with the index's column names."""
        return pa.table(self.columns)

    def add(self, member: Member, source: BinaryIO) -> None:
        """Add one member by its header, or reject it."""
        try:
            if not is_utf8(member.id):
                raise NotDecodable("its name is not UTF-8; rename it")
            facts = look(source, member.offset, member.length)
        except NotDecodable as error:
            self.reject(member.id, member.file, str(error))
            return
        for name, value in zip(self.columns, (*member, *facts), strict=True):
            self.columns[name].append(value)

    def reject(self, name: str, file: str, reason: str) -> None:
        """Leave a member out."""
        self.rejected.append((name if name == file else f"{file}: {name}", reason))

    def drop(self, rows: Iterable[int], reason: str) -> None:
        """Remove rows, and add their members to those left out."""
        dropped = sorted(set(rows), reverse=True)
        for row in reversed(dropped):
            self.reject(self.columns["id"][row], self.columns["file"][row], reason)
        for row in dropped:
            for column in self.columns.values():
                del column[row]

    def empty_classes(self, classes: Classes) -> list[str]:
        """Ids of the classes without a row."""
        counts = Counter(self.columns["label"])
        return [name for label, name in enumerate(classes.identities) if not counts[label]]


def is_utf8(name: str) -> bool:
    """Whether a file's name can be stored as text; Linux allows any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name with bytes that are not UTF-8 as ``\\x..``."""
    return os.fsencode(name).decode(errors="backslashreplace")
