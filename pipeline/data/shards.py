"""The files of a data set in several shards: patterns to paths, and their names in an index."""

import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.scan_rows import is_utf8, printable
from pipeline.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ShardFiles:
    """Shards in natural order.

    Attributes:
        paths: absolute paths; links are not resolved, so that the shards keep their names.
    """

    paths: list[Path]

    @property
    def root(self) -> Path:
        """The folder that contains all shards."""
        return Path(os.path.commonpath([path.parent for path in self.paths]))

    @property
    def archives(self) -> dict[str, Path]:
        """The shards' paths by their names, which are relative to the root.

        Raises:
            UserError: a name is not UTF-8, so that an index cannot hold it.
        """
        root = self.root
        named = {path.relative_to(root).as_posix(): path for path in self.paths}
        for name, path in named.items():
            if not is_utf8(name):
                raise UserError(f"{printable(path)}: the name of a shard must be UTF-8; rename it")
        return named


def list_shards(patterns: list[str], command: str) -> list[Path]:
    """Absolute paths of shards in natural order: shard-2.tar before shard-10.tar.

    Args:
        patterns: files; patterns with *, ? and [...]; ranges such as {0000..1023}.
        command: the command of tools/index.py, for messages.

    Raises:
        UserError: a pattern matches no file, or a shard is matched twice.
    """
    paths: list[Path] = []
    for pattern in patterns:
        for name in _expand_ranges(pattern):
            is_pattern = glob.has_magic(name) and not os.path.exists(name)
            matches = glob.glob(name) if is_pattern else [name]
            if not matches:
                raise UserError(f"{command}: no file matches {name}; give the shards' paths")
            paths += [Path(os.path.abspath(match)) for match in matches]
    paths.sort(key=lambda path: _natural_key(str(path)))
    for path, following in itertools.pairwise(paths):
        if path == following:
            raise UserError(f"{command}: {path} is given twice; give each shard once")
    return paths


def _expand_ranges(pattern: str) -> Iterator[str]:
    """The names of a pattern with ranges of numbers, {0000..1023}, as shells expand them."""
    match = _RANGE.search(pattern)
    if match is None or os.path.exists(pattern):
        yield pattern
        return
    if int(match[1]) > int(match[2]):
        raise UserError(f"{pattern}: the range {match[0]} is empty; give the smaller number first")
    for number in range(int(match[1]), int(match[2]) + 1):
        digits = str(number).zfill(len(match[1]))
        yield from _expand_ranges(pattern[: match.start()] + digits + pattern[match.end() :])


def _natural_key(name: str) -> list[Any]:
    """A name's text and numbers by turns, which compare as texts and as numbers."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]+)", name))]
