"""Runs units: on this machine, some at a time, or as SLURM arrays that wait for one another.

In: units in order. Out: their folders.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import submitit

from launchers import submit
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.submit import SUBMITTED
from launchers.tasks import Task
from pipeline.errors import UserError
from pipeline.runtime import config_file
from pipeline.runtime.files import write_json
from reproduction import estimate
from reproduction.plan import PlannedRun

LOG, ELAPSED = "log.txt", "elapsed.json"
_KINDS = {"pipeline.finetune": "finetune"}  # the others are evaluations


def run_locally(
    units: Sequence[PlannedRun], seconds: Mapping[str, float], ranks: int, at_once: int
) -> None:
    """Run units on this machine as soon as what they need is done.

    Args:
        units: that are not done, in order.
        seconds: that each is expected to take, by name.
        ranks: of each.
        at_once: how many run side by side.

    Raises:
        UserError: some failed; the others were run as far as they could be.
        KeyboardInterrupt: after SIGINT or SIGTERM; those that ran have saved.
    """
    pool = _Pool(units, seconds, ranks, at_once)
    # Python's own handler is missing where the shell started us in the background.
    before = {each: signal.signal(each, _interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        while pool.go_on():
            time.sleep(0.5)
    except KeyboardInterrupt:
        pool.stop()
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if pool.failed:
        named = "; ".join(f"{u.name}: {_last_line(u.folder / LOG)}" for u in pool.failed)
        raise UserError(f"{len(pool.failed)} failed ({named}); see {LOG} in their folders")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Pool:
    def __init__(
        self, units: Sequence[PlannedRun], seconds: Mapping[str, float], ranks: int, at_once: int
    ) -> None:
        self.waiting, self.total = list(units), len(units)
        self.seconds, self.ranks, self.at_once = seconds, ranks, at_once
        self.running: dict[str, tuple[PlannedRun, subprocess.Popen[bytes], float]] = {}
        self.failed: list[PlannedRun] = []
        self.ended: list[tuple[float, float]] = []  # seconds expected, and taken

    def go_on(self) -> bool:
        """Start what can start and see what has ended; whether anything is left."""
        for name, (unit, process, begin) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[name]
                self._note(unit, process.returncode, time.monotonic() - begin)
        bad = {unit.name for unit in self.failed}
        self.waiting = [u for u in self.waiting if not _hangs_on(u, bad)]
        open_ = {unit.name for unit in self.waiting} | self.running.keys()
        ready = [u for u in self.waiting if not any(n.name in open_ for n in u.needs)]
        for unit in ready[: self.at_once - len(self.running)]:
            self.waiting.remove(unit)
            print(f"begins  {unit.name}", flush=True)
            process = _start(unit, self.ranks, self.at_once)
            self.running[unit.name] = unit, process, time.monotonic()
        return bool(self.waiting or self.running)

    def stop(self) -> None:
        """Tell what runs to save and end, and wait for it."""
        for _, process, _ in self.running.values():
            process.terminate()
        for _, process, _ in self.running.values():
            process.wait()

    def _note(self, unit: PlannedRun, code: int, took: float) -> None:
        _add_elapsed(unit, took)
        if code != 0:
            self.failed.append(unit)
            print(f"FAILED  {unit.name}: {_last_line(unit.folder / LOG)}", flush=True)
            return
        self.ended.append((self.seconds[unit.name], took))
        left = sum(self.seconds[u.name] for u in self.waiting)
        left += sum(self.seconds[u.name] for u, _, _ in self.running.values()) / 2
        expected, taken = map(sum, zip(*self.ended, strict=True))
        left *= taken / max(expected, 1e-9) / self.at_once
        print(
            f"done    {unit.name} in {duration(took)}; {len(self.ended)} of {self.total}, "
            f"about {duration(left)} left",
            flush=True,
        )


def _start(unit: PlannedRun, ranks: int, at_once: int) -> subprocess.Popen[bytes]:
    unit.folder.mkdir(parents=True, exist_ok=True)
    config_file.save(unit.config, unit.folder / SUBMITTED)
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    command += [unit.module, "--config", str(unit.folder / SUBMITTED)]
    threads = estimate.threads(ranks, at_once)
    paths = [str(submit.PROJECT), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": str(threads)} | os.environ
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with (unit.folder / LOG).open("ab") as log:
        # A session of its own: Ctrl-C is for us, who then tell it.
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=variables, start_new_session=True
        )


def _hangs_on(unit: PlannedRun, bad: set[str]) -> bool:
    return any(need.name in bad or _hangs_on(need, bad) for need in unit.needs)


def _add_elapsed(unit: PlannedRun, seconds: float) -> None:
    write_json(unit.folder / ELAPSED, {"seconds": seconds + (elapsed(unit) or 0.0)})


def elapsed(unit: PlannedRun) -> float | None:
    """Seconds that a unit took on this machine, over all its starts; None if it ran elsewhere."""
    try:
        return json.loads((unit.folder / ELAPSED).read_text())["seconds"]
    except (OSError, ValueError, KeyError):
        return None


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it said nothing"


def duration(seconds: float) -> str:
    """As 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def on_slurm(
    output: Path, units: Sequence[PlannedRun], resources: Resources
) -> list[submitit.Job[None]]:
    """Submit all units, an array for each depth, after the one before it; and say so.

    Raises:
        UserError: sbatch refuses, or jobs of these runs have not ended.
    """
    submit.snapshot_code_and_config(output, [unit.config for unit in units], resources)
    every, before = [], None
    for depth in sorted({unit.depth for unit in units}):
        some = [unit for unit in units if unit.depth == depth]
        tasks = [
            Task(unit.module, ("--config", str(unit.folder / SUBMITTED)), str(Path.cwd()))
            for unit in some
        ]
        jobs = submit.submit(tasks, output, resources, before and f"afterok:{before}")
        for unit, job in zip(some, jobs, strict=True):
            kind = _KINDS.get(unit.module, "evaluate")
            Submission.of(unit.folder, kind, "slurm", job).write()
        before = ":".join(submit.job_ids(jobs))
        print(f"job {before}: {', '.join(unit.name for unit in some)}", flush=True)
        every += jobs
    return every
