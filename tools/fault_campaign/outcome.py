"""What came of a fault."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_campaign import files
from fault_campaign.attempts import Ended
from fault_campaign.plan import Fault

_RESUMED = re.compile(r"resuming from \S+, step (\d+)")
_LEFT = re.compile(r"(\d+) of (\d+) images to evaluate")


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        fault: the plan.
        done: what exactly was done; empty if the command always ended before.
        during: what the run did at that moment.
        exit_codes: of all starts.
        seconds_lost: from the fault until the next row of results after those before the fault, or
            until the end if there is none. A fault before the first row: how much later than in the
            undisturbed run that row came.
        start_seconds: of a start of the same run until its first row, or of the undisturbed run's.
        seconds: of all starts.
        repeated: steps or images that were computed again.
        errors: lines of errors of the disturbed start.
        differences: of results.
        problems: files, processes and ports left over; no end.
    """

    fault: Fault
    done: str = ""
    during: str = ""
    exit_codes: list[int] = field(default_factory=list)
    seconds_lost: float = 0.0
    start_seconds: float = 0.0
    seconds: float = 0.0
    repeated: int = 0
    errors: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Whether something was lost or left over."""
        return bool(self.differences or self.problems)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Outcome":
        """The outcome that was stored as a dictionary."""
        others = {name: value for name, value in values.items() if name != "fault"}
        return cls(Fault(**values["fault"]), **others)


def activity(run: Path) -> str:
    """What a run does: its progress, and the files that it is writing."""
    written = files.written_files(run)
    return ", ".join([files.progress(run) or "start-up", *(f"writing {name}" for name in written)])


def repeated(output: str, step_before: int, rows_before: int, num_rows: int) -> int:
    """Steps or images that the last start computed although they were done before.

    Args:
        output: what the last start printed. A job that was requeued has several starts in it.
        step_before: the last step before that start.
        rows_before: rows of results before it.
        num_rows: rows of results of a whole run. The images of an evaluation in shards are not
            counted: each shard prints only its own number.
    """
    left = _LEFT.findall(output)
    if left:
        num_left, total = map(int, left[-1])
        return max(num_left + rows_before - total, 0) if total == num_rows else 0
    resumed = _RESUMED.findall(output)
    return max(step_before - int(resumed[-1] if resumed else 0), 0)


def problems_of(starts: Sequence[Ended]) -> list[str]:
    """What the starts of a command left over, and the last one's error."""
    problems = []
    if starts and starts[-1].exit_code:
        last = (starts[-1].errors or starts[-1].output.splitlines() or ["no output"])[-1]
        problems.append(f"exit code {starts[-1].exit_code} after {len(starts)} starts: {last}")
    for number, start in enumerate(starts, 1):
        if start.timed_out:
            problems.append(f"start {number} did not end in time")
        problems += [f"process left over by start {number}: {name}" for name in start.remaining]
        problems += [f"port left over by start {number}: {port}" for port in start.ports]
        problems += [f"job left over by start {number}: {job}" for job in start.jobs]
    return problems
