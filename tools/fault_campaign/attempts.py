"""One start of a command: its processes, its output, its end."""

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fault_campaign import files, processes, slurm
from fault_campaign.commands import environment

END_SECONDS = 60.0  # for processes that remain when the command itself has ended
LAUNCHER_SECONDS = 60.0  # for the command when all ranks have ended
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Ended:
    """How a start of the command ended.

    Attributes:
        exit_code: of the command; negative: the signal that killed it.
        seconds: from the start until no process was left.
        output: what it printed.
        remaining: names of processes that did not end by themselves, and were killed.
        ports: ports on which processes of the command accepted connections, and which still do.
        jobs: jobs of SLURM that were still active, and were cancelled.
        timed_out: it was killed because it did not end in time.
        launcher_killed: all ranks had ended, but the command had not: so it was killed. torchrun
            waits without a limit for its store if the network is down.
        recovered: `time.monotonic` when more rows than a number were written; None: never.
    """

    exit_code: int
    seconds: float
    output: str
    remaining: list[str]
    ports: list[int]
    jobs: list[str]
    timed_out: bool
    launcher_killed: bool
    recovered: float | None

    @property
    def errors(self) -> list[str]:
        """The lines of errors that it printed."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class Attempt:
    """A command that runs, in a session of its own; its output goes to a file.

    The output passes through a pipe, so that a limit on the size of files does not apply to it.

    Attributes:
        begin: when it was started (`time.monotonic`).
        folder: its output folder.
        process: the process of the command itself.
        start_seconds: from the start until `wait_for_row` has first seen a row of results; None
            before.
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, mark: str, log: Path, time_limit: float
    ) -> None:
        """Start the command.

        Args:
            argv: its words.
            folder: its output folder.
            mark: for its environment.
            log: file for its output.
            time_limit: seconds from now, after which `in_time` is false and `wait` kills it.
        """
        self._mark, self._log, self.begin = mark, log, time.monotonic()
        self._deadline = self.begin + time_limit
        self._ports: set[int] = set()
        self.start_seconds: float | None = None
        self.folder = folder
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(mark),
        )
        self._reader = threading.Thread(target=self._copy_output, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return self.process.poll() is None

    @property
    def in_time(self) -> bool:
        """Whether the command has not ended yet and the time limit has not passed."""
        return self.running and time.monotonic() < self._deadline

    def launcher(self) -> psutil.Process:
        """The process of the command itself."""
        return psutil.Process(self.process.pid)

    def ranks(self) -> list[psutil.Process]:
        """The ranks that run now, in the order of their numbers."""
        marked = processes.marked(self._mark)
        self._ports |= processes.listening_ports(marked)
        return processes.ranks(marked, self.process.pid)

    def jobs(self) -> list[str]:
        """The jobs of SLURM that were submitted for the run, by number."""
        return slurm.jobs_of(self.folder, self.output())

    def wait_for_row(self, rows: int) -> float | None:
        """Wait until there are more rows than this number; returns when (`time.monotonic`), or
        None if the command ended before or its time limit passed."""
        while self.in_time:
            if files.num_rows(self.folder) > rows:
                self.start_seconds = self.start_seconds or self.seconds
                return time.monotonic()
            time.sleep(_POLL_SECONDS)
        return None

    def wait(self, rows: int = 0, ranks: Sequence[psutil.Process] = ()) -> Ended:
        """Wait for the end of the command and of all processes that it has started.

        They are killed after the time limit, and jobs are cancelled.

        Args:
            rows: report when more rows than this number have been written.
            ranks: the ranks; the command is killed `LAUNCHER_SECONDS` after the end of all of them.
        """
        now = time.monotonic()
        ranks_end, recovered = now, None
        while self.in_time and (not ranks or now - ranks_end < LAUNCHER_SECONDS):
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if recovered is None and files.num_rows(self.folder) > rows:
                recovered = now
            if any(_runs(rank) for rank in ranks):
                ranks_end = now
        in_time, killed = self.in_time, self.running
        if killed:
            processes.end_all(self._mark)
            self.process.wait()
        remaining = processes.wait_for_end(self._mark, END_SECONDS)
        names = [f"{process.pid} {' '.join(_command_line(process))}" for process in remaining]
        processes.end_all(self._mark)
        elapsed = self.seconds
        self._reader.join(timeout=5)
        return Ended(
            self.process.returncode,
            elapsed,
            self.output(),
            names,
            sorted(processes.still_listening(self._ports)) if self._ports else [],
            slurm.cancel_all(self.jobs(), self.folder),
            timed_out=killed and not in_time,
            launcher_killed=killed and in_time,
            recovered=recovered,
        )

    def output(self) -> str:
        """What the command has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _copy_output(self) -> None:
        assert self.process.stdout is not None, "it is a pipe"
        with self._log.open("wb") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
