"""metrics.jsonl of a run that resumes: its later lines are written again."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import first_few
from pipeline.runtime.files import atomic_write


def drop_lines_after(path: Path, step: int, evaluated: bool = True) -> str:
    """Keep the lines of metrics.jsonl up to ``step``; a resumed run writes the later ones again.

    Args:
        path: the file.
        step: steps that the resumed run has done.
        evaluated: whether it has evaluated the net after them. If not, it does so again, and a line
            of that evaluation is dropped: a kill came between the line and the checkpoint.

    Returns:
        A warning if damaged lines were dropped too. A last line that a kill cut short does not
        count as damaged.
    """
    if not path.exists():
        return ""
    kept, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        values = _values_of(line)
        if values is None:
            damaged.append(str(number))
        elif values["step"] < step or (
            values["step"] == step and (evaluated or not _is_evaluation(values))
        ):
            kept.append(line)
    with atomic_write(path) as partial:
        partial.write_bytes(b"".join(kept))
    if not damaged:
        return ""
    lines = "line is" if len(damaged) == 1 else "lines are"
    return (
        f"{path}: {len(damaged)} {lines} damaged and left out ({first_few(damaged)}); the run "
        "itself does not depend on this file"
    )


def _values_of(line: bytes) -> dict[str, Any] | None:
    """The values of a line of metrics.jsonl; None where the line is damaged."""
    try:
        values = json.loads(line)
        step = values["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return values if isinstance(step, int | float) else None


def _is_evaluation(values: dict[str, Any]) -> bool:
    return any(name.startswith("evaluation/") for name in values)
