"""metrics.jsonl of a run that resumes: its later lines are written again."""

import json
from pathlib import Path

from pipeline.errors import first_few
from pipeline.runtime.files import atomic_write


def drop_lines_after(path: Path, step: int) -> str:
    """Keep the lines of metrics.jsonl up to ``step``; a resumed run writes the later ones again.

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
        line_step = _step_of(line)
        if line_step is None:
            damaged.append(str(number))
        elif line_step <= step:
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


def _step_of(line: bytes) -> float | None:
    """The step of a line of metrics.jsonl; None where the line is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int | float) else None
