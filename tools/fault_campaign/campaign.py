"""A campaign: an undisturbed run, then the planned faults, each with its resumed run.

FOLDER/undisturbed/ and FOLDER/faults/NUMBER-KIND/ contain the run, its output, and a JSON file once
it is done; so a campaign that is interrupted resumes. Runs that lost nothing are deleted.
"""

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from fault_campaign import comparison, files, moments, processes
from fault_campaign.attempts import Attempt, Ended
from fault_campaign.commands import Command
from fault_campaign.kinds import KINDS, WORK, WRITE, Kind, Target
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault
from pipeline.errors import UserError
from pipeline.runtime.files import write_json

_MAX_TRIES = 3  # of a fault whose command ended before its moment
_EARLIER = 0.7  # factor of the fraction of each further try
_RESUMED = re.compile(r"resuming from \S+, step (\d+)")
_LEFT = re.compile(r"(\d+) of (\d+) images to evaluate")


@dataclass(frozen=True)
class Settings:
    """Settings of a campaign.

    Attributes:
        folder: of the campaign.
        max_starts: starts of the command for each fault, with the disturbed one.
        time_limit: seconds from a start of the command, after which it is killed.
        keep: keep the folders of runs that lost nothing.
    """

    folder: Path
    max_starts: int
    time_limit: float
    keep: bool


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


class Campaign:
    """Runs the faults of a plan, and stores what came of each."""

    def __init__(self, command: Command, settings: Settings) -> None:
        self.command, self.settings = command, settings
        self.mark = uuid.uuid5(uuid.NAMESPACE_URL, str(settings.folder.resolve())).hex
        processes.end_all(self.mark)  # of a campaign that was killed

    @property
    def whole(self) -> Path:
        """The output folder of the undisturbed run."""
        return self.settings.folder / "undisturbed" / "run"

    def undisturbed(self) -> Pace:
        """Run the command undisturbed, unless that is done.

        Raises:
            UserError: it failed; the folder is of a campaign of another command.
        """
        stored = self.whole.parent / "pace.json"
        if stored.exists():
            return Pace.read(stored, self.command, self.settings.folder)
        shutil.rmtree(self.whole.parent, ignore_errors=True)
        self.whole.parent.mkdir(parents=True)
        log = self.whole.parent / "output.txt"
        attempt = self._start(self.whole, log)
        while attempt.in_time and not files.num_rows(self.whole):
            time.sleep(0.01)
        start_seconds = attempt.seconds
        ended = attempt.wait()
        num_rows = files.num_rows(self.whole)
        if ended.exit_code or not num_rows:
            last = (ended.errors or ended.output.splitlines() or ["no output"])[-1]
            failure = f"failed with exit code {ended.exit_code}"
            if ended.timed_out:
                failure = f"did not end within --time_limit, {self.settings.time_limit:g} s"
            raise UserError(f"the undisturbed run {failure}: {last}")
        sizes = [(self.whole / name).stat().st_size for name in files.all_files(self.whole)]
        pace = Pace(start_seconds, ended.seconds, num_rows, max(sizes))
        pace.write(stored, self.command)
        return pace

    def run(
        self, plan: Sequence[Fault], pace: Pace, report: Callable[[Outcome, int], None]
    ) -> list[Outcome]:
        """Run all faults that are not done.

        Args:
            plan: the faults.
            pace: of the undisturbed run.
            report: is called after each fault that was run, with the number of those to come.
        """
        outcomes = []
        for position, fault in enumerate(plan):
            folder = self.settings.folder / "faults" / f"{fault.number:03d}-{fault.kind}"
            stored = folder / "outcome.json"
            if stored.exists():
                outcome = Outcome.from_dict(json.loads(stored.read_text()))
                if outcome.fault != fault:
                    raise UserError(f"{folder} is of another plan; give another --output")
                outcomes.append(outcome)
                continue
            outcome = self._run_fault(fault, folder, pace)
            write_json(stored, asdict(outcome))
            if not outcome.lost and not self.settings.keep:
                shutil.rmtree(folder / "run")
            outcomes.append(outcome)
            report(outcome, len(plan) - position - 1)
        return outcomes

    def _start(self, run: Path, log: Path, wrapper: tuple[str, ...] = ()) -> Attempt:
        """Start the command, with words in front of it if it is to be disturbed."""
        argv = [*wrapper, *self.command.with_output(run)]
        return Attempt(argv, run, self.mark, log, self.settings.time_limit)

    def _run_fault(self, fault: Fault, folder: Path, pace: Pace) -> Outcome:
        kind, outcome = KINDS[fault.kind], Outcome(fault)
        begin = time.monotonic()
        disturbed = self._disturb(outcome, kind, folder, pace)
        run = folder / "run"
        rows, step = files.num_rows(run), files.last_step(run)
        starts = [disturbed.ended]
        outcome.errors = disturbed.ended.errors
        if disturbed.ended.launcher_killed:
            outcome.done += "; the ranks ended, the command did not: it was killed"
        if outcome.done and kind.damage is not None and starts[0].exit_code:
            outcome.done += f"; {kind.damage(run, fault.draw)}"
        while starts[-1].exit_code and len(starts) < self.settings.max_starts:
            log = folder / f"output-{len(starts) + 1}.txt"
            starts.append(self._start(run, log).wait(rows))
        recovered = starts[-1].recovered or time.monotonic()
        outcome.seconds_lost = max(recovered - disturbed.moment, 0)
        if not disturbed.rows:
            outcome.seconds_lost = max(recovered - disturbed.begin - pace.start_seconds, 0)
        outcome.seconds = time.monotonic() - begin
        if len(starts) > 1:
            outcome.repeated = _repeated(starts[-1].output, step, rows)
        outcome.exit_codes = [start.exit_code for start in starts]
        if not outcome.done:
            reason = "did not come so far in time" if starts[0].timed_out else "ended before"
            outcome.problems.append(f"the fault did not happen: the command {reason}")
        outcome.problems += _problems(starts)
        aside = int(kind.damage is not None)
        outcome.problems += comparison.left_over(run, self.whole, aside)
        outcome.differences = comparison.differences(run, self.whole)
        return outcome

    def _disturb(self, outcome: Outcome, kind: Kind, folder: Path, pace: Pace) -> "_Disturbed":
        """Start the command, cause the fault and wait for the end."""
        fault, number, run = outcome.fault, 0, folder / "run"
        while True:  # earlier in the run if the command ended before
            shutil.rmtree(folder, ignore_errors=True)
            run.mkdir(parents=True)
            earlier = replace(fault, fraction=fault.fraction * _EARLIER**number)
            if number == _MAX_TRIES - 1 and fault.phase == WRITE:  # it may write no such files
                earlier = replace(earlier, phase=WORK)
            begin = time.monotonic()
            attempt = self._start(run, folder / "output-1.txt", kind.wrapper)
            ranks = moments.wait_for(
                earlier, attempt, pace, self.command.num_ranks, kind.damage is not None
            )
            moment, rows = time.monotonic(), files.num_rows(run)
            if ranks:
                outcome.during = _during(run)
                outcome.done = _inject(kind, _target(attempt, ranks, fault, pace))
            ended = attempt.wait(rows, ranks)
            number += 1
            if outcome.done or ended.exit_code or number == _MAX_TRIES:
                return _Disturbed(ended, begin, moment, rows)


@dataclass(frozen=True)
class _Disturbed:
    """A start of the command with a fault: its end, and when (`time.monotonic`) it began and the
    fault happened, after how many rows of results."""

    ended: Ended
    begin: float
    moment: float
    rows: int


def _target(attempt: Attempt, ranks: list[psutil.Process], fault: Fault, pace: Pace) -> Target:
    rank = fault.rank_of(len(ranks))
    launcher, folder = attempt.launcher(), attempt.folder
    return Target(launcher, ranks, rank, folder, fault.draw, pace.largest_file)


def _inject(kind: Kind, target: Target) -> str:
    """Cause the fault; returns what was done, or nothing if the rank has ended meanwhile."""
    try:
        return kind.inject(target)
    except (psutil.NoSuchProcess, ProcessLookupError, subprocess.CalledProcessError):
        return ""


def _during(run: Path) -> str:
    written = files.written_files(run)
    return ", ".join([files.progress(run) or "start-up", *(f"writing {name}" for name in written)])


def _repeated(output: str, step_before: int, rows_before: int) -> int:
    """Steps or images that the last start computed although they were done before."""
    left = _LEFT.search(output)
    if left:
        return max(int(left[1]) + rows_before - int(left[2]), 0)
    resumed = _RESUMED.search(output)
    return max(step_before - (int(resumed[1]) if resumed else 0), 0)


def _problems(starts: Sequence[Ended]) -> list[str]:
    problems = []
    if starts[-1].exit_code:
        last = (starts[-1].errors or starts[-1].output.splitlines() or ["no output"])[-1]
        problems.append(f"exit code {starts[-1].exit_code} after {len(starts)} starts: {last}")
    for number, start in enumerate(starts, 1):
        if start.timed_out:
            problems.append(f"start {number} did not end in time")
        problems += [f"process left over by start {number}: {name}" for name in start.remaining]
        problems += [f"port left over by start {number}: {port}" for port in start.ports]
    return problems
