"""Lines of the results of a shard, checked when they are read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.manifest import Manifest
from pipeline.evaluation.samples import KINDS, Samples
from pipeline.runtime.json_checks import LIST, NUMBER, TEXT, WHOLE_NUMBER, Kinds, lacking

Row = dict[str, Any]

_SKIPPED: Kinds = {"id": TEXT, "row": WHOLE_NUMBER}
_OF_COLUMN = {float: NUMBER, bool: (bool,)}
_MEASURED: Kinds = {
    **_SKIPPED,
    **{f.name: _OF_COLUMN.get(KINDS.get(f.name), WHOLE_NUMBER) for f in fields(Samples)},
    "fgs_correct": LIST,
}


def read_rows(path: Path, manifest: Manifest) -> Iterator[Row]:
    """The results in a file: those that were measured, and images that did not decode.

    Raises:
        UserError: a line is damaged, or is no result of this evaluation.
    """
    total, num_eps = manifest.identity["num_indexed"], manifest.num_eps

    def problem(values: Any) -> str:
        skipped = isinstance(values, dict) and values.get("skipped")
        text = lacking(values, _SKIPPED if skipped else _MEASURED)
        if not text and not 0 <= values["row"] < total:
            text = f"has row {values['row']}, of {total} images"
        if not text and not skipped and not _is_of_length(values["fgs_correct"], num_eps):
            text = f"has another kind of value for fgs_correct than {num_eps} times true or false"
        return text

    return read_lines(path, problem)


def read_lines(path: Path, problem: Callable[[Any], str] = lambda _: "") -> Iterator[Any]:
    """The whole JSON lines of a file; a last one that a kill cut short is left out.

    Args:
        path: the file.
        problem: says what is wrong with a line's values, if anything is.

    Raises:
        UserError: a line is damaged.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        values = None
        try:
            values = json.loads(line)
            text = problem(values)
        except ValueError:
            text = "is no JSON"
        if text:
            raise UserError(
                f"{path} is damaged in line {number}, which {text}; delete that line and evaluate "
                "again"
            )
        yield values


def _is_of_length(values: list[Any], number: int) -> bool:
    return len(values) == number and all(isinstance(value, bool) for value in values)
