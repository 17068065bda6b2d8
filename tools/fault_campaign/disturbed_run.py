"""A run with one or several faults, resumed until it has ended."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from fault_campaign import comparison, files, moments, slurm
from fault_campaign.attempts import Attempt, Ended
from fault_campaign.commands import Command
from fault_campaign.job_faults import NOT_INTERRUPTED
from fault_campaign.kind import START, WORK, WRITE, Kind, Target
from fault_campaign.kinds import KINDS
from fault_campaign.outcome import Outcome, activity, problems_of, repeated
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault
from fault_campaign.refused import FaultRefusedError

_MAX_TRIES = 3  # of a fault whose command ended before its moment
_EARLIER = 0.7  # factor of the fraction of each further try


@dataclass(frozen=True)
class Starter:
    """Starts the command of a campaign.

    Attributes:
        command: the command.
        mark: for the environment of its processes.
        time_limit: seconds from a start, after which it is killed.
        max_starts: starts for each fault, with the disturbed one.
    """

    command: Command
    mark: str
    time_limit: float
    max_starts: int

    def start(self, run: Path, log: Path, wrapper: Sequence[str] = ()) -> Attempt:
        """Start the command, with words in front of it if it is to be disturbed."""
        argv = [*wrapper, *self.command.with_output(run)]
        return Attempt(argv, run, self.mark, log, self.time_limit)


class DisturbedRun:
    """A run of the command in an empty folder, with faults.

    With several faults each comes after the run has recovered from the one before, and the rows of
    results are divided equally among them. Only the last one's outcome has the comparison.
    """

    def __init__(
        self, starter: Starter, folder: Path, faults: Sequence[Fault], pace: Pace, whole: Path
    ) -> None:
        """Plan a run; nothing is started yet.

        Args:
            starter: of the command.
            folder: for the run and its output; it is emptied.
            faults: in their order; at least one.
            pace: of the undisturbed run.
            whole: the folder of the undisturbed run.
        """
        self._starter, self._folder, self._faults = starter, folder, faults
        self._pace, self._whole, self._run = pace, whole, folder / "run"
        self._attempt: Attempt | None = None  # None: the command does not run
        self._ended: list[Ended] = []
        # Words in front of the command; a disturbed start has those of all faults that may follow.
        wrappers = dict.fromkeys(KINDS[fault.kind].wrapper for fault in faults)
        self._wrapper = [word for words in wrappers for word in words]
        self._ranks: list[psutil.Process] = []
        self._start_seconds: float | None = None  # of the first start

    def run(self) -> list[Outcome]:
        """Start the command, cause the faults, resume until it has ended, compare."""
        self._empty_folder()
        outcomes = [self._cause(position) for position in range(len(self._faults))]
        last = outcomes[-1]
        last.problems += problems_of(self._ended)
        aside = sum(KINDS[fault.kind].damage is not None for fault in self._faults)
        last.problems += comparison.left_over(self._run, self._whole, aside)
        last.differences = comparison.differences(self._run, self._whole)
        return outcomes

    def _empty_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._run.mkdir(parents=True)

    def _cause(self, position: int) -> Outcome:
        """Wait for the moment of a fault, cause it, and wait until the run has recovered; after the
        last fault until it has ended."""
        fault, is_last = self._faults[position], position == len(self._faults) - 1
        kind, outcome = KINDS[fault.kind], Outcome(fault)
        begin, num_ended = time.monotonic(), len(self._ended)
        is_reached = self._reach(fault, kind, position)
        attempt = self._attempt
        assert attempt is not None, "it is left where it was when the moment came, or did not"
        moment, rows = time.monotonic(), files.num_rows(self._run)
        at_start = rows == 0
        if is_reached:
            self._inject(outcome, kind, attempt)
        else:
            reason = "ended before" if not attempt.running else "did not come so far in time"
            outcome.problems.append(f"the fault did not happen: the command {reason}")
        if kind.on_job:  # it did some more steps before SLURM interrupted it
            rows = files.num_rows(self._run)
        step = files.last_step(self._run)
        if is_last or (outcome.done and not kind.continues):
            recovered, resumed = self._recover(outcome, kind, rows, to_end=is_last)
            rows, step = resumed or (rows, step)
        else:
            recovered = attempt.wait_for_row(rows)
        ended = self._ended[num_ended:]
        recovered = recovered or time.monotonic()
        if num_ended == 0 and position == 0:
            self._start_seconds = attempt.start_seconds
        outcome.start_seconds = self._start_seconds or self._pace.start_seconds
        due = attempt.begin + self._pace.start_seconds if at_start else moment
        outcome.seconds_lost = max(recovered - due, 0)
        outcome.seconds = time.monotonic() - begin
        outcome.exit_codes = [start.exit_code for start in ended]
        is_started_again = len(ended) + (self._attempt is not None) > 1
        is_requeued = kind.on_job and outcome.done and not outcome.done.endswith(NOT_INTERRUPTED)
        if is_started_again or is_requeued:
            outcome.repeated = repeated(self._last_output(), step, rows, self._pace.num_rows)
        return outcome

    def _last_output(self) -> str:
        """What the last start has printed, and the jobs that it has submitted."""
        output = self._attempt.output() if self._attempt else self._ended[-1].output
        return slurm.log_of(self._run, slurm.jobs_of(self._run, output)) or output

    def _reach(self, fault: Fault, kind: Kind, position: int) -> bool:
        """Start the command if it does not run, and wait for the moment of a fault.

        Returns:
            Whether the moment came. The last attempt is kept in any case.
        """
        is_only = len(self._faults) == 1
        for number in range(_MAX_TRIES):
            attempt = self._attempt = self._attempt or self._start(disturbed=True)
            planned = self._planned(fault, position, number)
            if moments.wait_for(planned, attempt, self._pace, lambda: self._is_ready(kind)):
                return True
            exit_code = attempt.process.poll()
            is_too_late = is_only and exit_code == 0
            is_disturbed_late = not is_only and exit_code not in (None, 0)  # by the fault before
            if number == _MAX_TRIES - 1 or not (is_too_late or is_disturbed_late):
                break
            ended = attempt.wait()
            self._attempt = None
            if is_too_late:  # a new run, and the fault earlier
                self._empty_folder()
            else:
                self._ended.append(ended)
        return False

    def _planned(self, fault: Fault, position: int, number: int) -> Fault:
        """A fault with its fraction of the whole run, in one of several tries."""
        if len(self._faults) > 1:
            fraction = (position + fault.fraction) / len(self._faults)
            phase = WORK if fault.phase == START else fault.phase
            return replace(fault, fraction=fraction, phase=phase)
        earlier = replace(fault, fraction=fault.fraction * _EARLIER**number)
        if number == _MAX_TRIES - 1 and fault.phase == WRITE:  # it may write no such files
            return replace(earlier, phase=WORK)
        return earlier

    def _start(self, *, disturbed: bool) -> Attempt:
        wrapper = self._wrapper if disturbed else ()
        log = self._folder / f"output-{len(self._ended) + 1}.txt"
        return self._starter.start(self._run, log, wrapper)

    def _is_ready(self, kind: Kind) -> bool:
        """Whether the run has the processes, jobs and checkpoints that a fault needs."""
        assert self._attempt is not None, "the command runs"
        if kind.on_job:
            is_running = bool(slurm.running(self._attempt.jobs()))
            time.sleep(0 if is_running else slurm.POLL_SECONDS)
            return is_running
        if kind.damage is not None and not files.numbered_checkpoints(self._run):
            return False
        self._ranks = self._attempt.ranks()
        return len(self._ranks) >= self._starter.command.num_ranks

    def _inject(self, outcome: Outcome, kind: Kind, attempt: Attempt) -> None:
        """Cause the fault, or report why it did not happen."""
        outcome.during = activity(self._run)
        try:
            outcome.done = kind.inject(self._target(attempt, outcome.fault, kind))
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            outcome.problems.append("the fault did not happen: the process had ended")
        except FaultRefusedError as error:
            outcome.problems.append(f"the fault did not happen: {error}")

    def _target(self, attempt: Attempt, fault: Fault, kind: Kind) -> Target:
        running = slurm.running(attempt.jobs()) if kind.on_job else []
        if kind.on_job and not running:
            raise FaultRefusedError("no job of the run runs")
        return Target(
            launcher=attempt.launcher(),
            ranks=self._ranks,
            rank=fault.rank_of(max(len(self._ranks), 1)),
            folder=self._run,
            draw=fault.draw,
            largest_file=self._pace.largest_file,
            job=running[-1] if running else "",
            argv=self._starter.command.argv,
        )

    def _recover(
        self, outcome: Outcome, kind: Kind, rows: int, *, to_end: bool
    ) -> tuple[float | None, tuple[int, int] | None]:
        """Wait for the end of the disturbed start, then resume.

        Args:
            outcome: gets the errors, and what else was done.
            kind: of the fault.
            rows: before the fault.
            to_end: until the command has ended with 0; else until there are more rows.

        Returns:
            When there were more rows (`time.monotonic`); rows and the last step before the resumed
            start, None if there was none.
        """
        # SLURM starts a job again after its tasks have ended; torchrun and others do not.
        waits_for_ranks = outcome.done and not self._starter.command.submits
        ended = self._end_attempt(rows, self._ranks if waits_for_ranks else ())
        outcome.errors = ended.errors
        if ended.launcher_killed:
            outcome.done += "; the ranks ended, the command did not: it was killed"
        if outcome.done and kind.damage is not None and ended.exit_code:
            outcome.done += f"; {kind.damage(self._run, outcome.fault.draw)}"
        if not ended.exit_code:
            return ended.recovered, None
        resumed = rows, _ = files.num_rows(self._run), files.last_step(self._run)
        for _ in range(self._starter.max_starts - 1):
            self._attempt = self._start(disturbed=not to_end)
            recovered = None if to_end else self._attempt.wait_for_row(rows)
            if recovered is not None:
                return recovered, resumed
            ended = self._end_attempt(rows)
            if not ended.exit_code:
                break
        return ended.recovered, resumed

    def _end_attempt(self, rows: int, ranks: Sequence[psutil.Process] = ()) -> Ended:
        """Wait for the end of the command; see `Attempt.wait`."""
        assert self._attempt is not None, "the command runs"
        ended = self._attempt.wait(rows, ranks)
        self._attempt = None
        self._ended.append(ended)
        return ended
