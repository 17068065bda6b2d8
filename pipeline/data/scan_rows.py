"""Rows of an index while it is made: images by their headers, and what is left out."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.data.classes import Classes
from pipeline.data.image_check import ImageFacts, NotDecodable, look


class Member(NamedTuple):
    """Where one image's bytes are."""

    id: str
    file: str
    offset: int
    length: int
    label: int


@dataclass
class Scan:
    """Rows so far, as columns, and the members that are left out."""

    columns: dict[str, list] = field(
        default_factory=lambda: {name: [] for name in (*Member._fields, *ImageFacts._fields)}
    )
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (member, why)

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

    def reject(self, name: str, file: str, why: str) -> None:
        """Leave a member out."""
        self.rejected.append((name if name == file else f"{file}: {name}", why))

    def drop(self, rows: Iterable[int], why: str) -> None:
        """Leave out rows that were added."""
        dropped = sorted(set(rows), reverse=True)
        for row in reversed(dropped):
            self.reject(self.columns["id"][row], self.columns["file"][row], why)
        for row in dropped:
            for column in self.columns.values():
                del column[row]

    def empty_classes(self, classes: Classes) -> list[str]:
        """Ids of the classes that no row has."""
        counts = Counter(self.columns["label"])
        return [name for label, name in enumerate(classes.identities) if not counts[label]]


def is_utf8(name: str) -> bool:
    """Whether a file's name can be stored; Linux allows any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name with bytes that are not UTF-8 as ``\\x..``."""
    return os.fsencode(name).decode(errors="backslashreplace")
