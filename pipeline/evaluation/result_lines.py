"""The lines of a shard's results, checked when they are read.

Each line ends with a checksum of the text before it: a digit that a disk changes would be a valid
number.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.manifest import Manifest
from pipeline.evaluation.samples import COLUMNS, EARLIER_VALUES, column_type
from pipeline.runtime.json_checks import LIST, NUMBER, TEXT, WHOLE_NUMBER, Kinds, schema_problem

ResultRow = dict[str, Any]

_CHECKSUM = ', "crc32": '

_SKIPPED: Kinds = {"id": TEXT, "row": WHOLE_NUMBER}
_JSON_TYPES = {float: NUMBER, bool: (bool,), np.int64: WHOLE_NUMBER}
_MEASURED: Kinds = {
    **_SKIPPED,
    **{name: _JSON_TYPES[column_type(name)] for name in COLUMNS},
    **dict.fromkeys(("fgs_correct", "distances"), LIST),
}


def result_line(values: ResultRow) -> str:
    """The line of a result, with its checksum."""
    text = json.dumps(values)[:-1]
    return f"{text}{_CHECKSUM}{zlib.crc32(text.encode())}}}\n"


def read_rows(path: Path, manifest: Manifest) -> Iterator[ResultRow]:
    """The results in a file: of images that were measured, and of images that did not decode.

    Raises:
        UserError: a line is damaged, or is not a result of this evaluation.
    """
    num_images, protocol = manifest.identity.num_indexed, manifest.identity.protocol
    num_eps, num_distances = protocol.num_eps, protocol.num_distances

    def problem(values: Any) -> str:
        skipped = isinstance(values, dict) and values.get("skipped")
        if isinstance(values, dict):
            values = {**EARLIER_VALUES, **values}
        text = schema_problem(values, _SKIPPED if skipped else _MEASURED)
        if text:
            return text
        if not 0 <= values["row"] < num_images:
            return f"has row {values['row']}, of {num_images} images"
        if not skipped and not _are_booleans(values["fgs_correct"], num_eps):
            return f"has another kind of value for fgs_correct than {num_eps} times true or false"
        if not skipped and not _are_numbers(values["distances"], num_distances):
            return f"has another kind of value for distances than {num_distances} numbers"
        return ""

    return read_lines(path, problem)


def read_lines(path: Path, problem: Callable[[Any], str] = lambda _: "") -> Iterator[Any]:
    """The complete JSON lines of a file, without a last line that a kill cut short.

    Checksums are compared where there are any: lines of earlier versions have none.

    Args:
        path: the file.
        problem: returns a phrase about what is wrong with the values of a line, or an empty string.

    Raises:
        UserError: a line is damaged.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        values = None
        try:
            values = json.loads(line)
            text = problem(values) or _checksum_problem(line, values)
        except ValueError:
            text = "is not JSON"
        if text:
            raise UserError(
                f"{path} is damaged in line {number}, which {text}; delete that line and evaluate "
                "again"
            )
        yield values


def _checksum_problem(line: bytes, values: Any) -> str:
    """What is wrong with the checksum, which is taken out of the values."""
    if not isinstance(values, dict) or "crc32" not in values:
        return ""
    text, _, _ = line.rpartition(_CHECKSUM.encode())
    return "" if values.pop("crc32") == zlib.crc32(text) else "does not match its checksum"


def _are_booleans(values: list[Any], number: int) -> bool:
    return len(values) == number and all(isinstance(value, bool) for value in values)


def _are_numbers(values: list[Any], number: int) -> bool:
    return len(values) == number and all(isinstance(value, int | float) for value in values)
