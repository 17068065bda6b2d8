"""One mistake of a user, and what must come of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """A mistake of a user, and what must come of it."""

    number: str  # a finding or a phrase for what is wrong; unique
    argv: Callable[[Path], Sequence[object]]  # makes files in an empty folder; the command line
    line: str  # regular expression, found in the output
    code: int = 2
