"""Starts planned runs: on this machine, or as SLURM arrays with dependencies.

In: planned runs, in an order in which they can run. Out: their folders.
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
from pipeline.config import messages
from pipeline.errors import UserError
from pipeline.runtime import config_file
from pipeline.runtime.files import write_json
from reproduction import estimate
from reproduction.plan import PlannedRun

LOG, ELAPSED = "log.txt", "elapsed.json"
_KINDS = {"pipeline.finetune": "finetune"}  # other modules count as evaluations


def run_locally(
    planned_runs: Sequence[PlannedRun], seconds: Mapping[str, float], ranks: int, max_parallel: int
) -> None:
    """Run on this machine; a run starts as soon as the runs that it needs are done.

    Args:
        planned_runs: runs that are not done, in an order in which they can run.
        seconds: expected time of each run, by name.
        ranks: number of ranks of each run.
        max_parallel: how many runs may run at the same time.

    Raises:
        UserError: some runs failed; all that do not need them were run.
        KeyboardInterrupt: after SIGINT or SIGTERM; the interrupted runs have saved.
    """
    pool = _Pool(planned_runs, seconds, ranks, max_parallel)
    # A process that the shell started in the background ignores SIGINT by default.
    signals = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = {number: signal.signal(number, _interrupt) for number in signals}
    try:
        while pool.update():
            time.sleep(0.5)
    except BaseException:  # Ctrl-C, or a full disk
        pool.stop()
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    if pool.failed:
        failed = sorted(pool.failed, key=planned_runs.index)
        failures = "; ".join(f"{r.name}: {_last_line(r.folder / LOG)}" for r in failed)
        raise UserError(f"{len(pool.failed)} failed ({failures}); see {LOG} in their folders")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Pool:
    """The runs that are waiting, running, and ended."""

    def __init__(
        self,
        planned_runs: Sequence[PlannedRun],
        seconds: Mapping[str, float],
        ranks: int,
        max_parallel: int,
    ) -> None:
        self.waiting, self.total = list(planned_runs), len(planned_runs)
        self.seconds, self.ranks, self.max_parallel = seconds, ranks, max_parallel
        self.running: dict[str, tuple[PlannedRun, subprocess.Popen[bytes], float]] = {}
        self.failed: list[PlannedRun] = []
        self.ended: list[tuple[float, float]] = []  # seconds expected, and taken

    def update(self) -> bool:
        """Collect the runs that have ended and start new ones; False once none is left."""
        for name, (planned, process, begin) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[name]
                self._record_end(planned, process.returncode, time.monotonic() - begin)
        failed = {planned.name for planned in self.failed}
        self.waiting = [r for r in self.waiting if not _needs_any(r, failed)]
        unfinished = {planned.name for planned in self.waiting} | self.running.keys()
        ready = [r for r in self.waiting if not any(n.name in unfinished for n in r.needs)]
        for planned in ready[: self.max_parallel - len(self.running)]:
            self.waiting.remove(planned)
            print(f"starting {planned.name}", flush=True)
            process = _start(planned, self.ranks, self.max_parallel)
            self.running[planned.name] = planned, process, time.monotonic()
        return bool(self.waiting or self.running)

    def stop(self) -> None:
        """Make the running processes save and exit, and wait for them."""
        for _, process, _ in self.running.values():
            process.terminate()
        for _, process, _ in self.running.values():
            process.wait()

    def _record_end(self, planned: PlannedRun, exit_code: int, seconds: float) -> None:
        _add_elapsed(planned, seconds)
        if exit_code != 0:
            self.failed.append(planned)
            print(f"FAILED   {planned.name}: {_last_line(planned.folder / LOG)}", flush=True)
            return
        self.ended.append((self.seconds[planned.name], seconds))
        left = sum(self.seconds[r.name] for r in self.waiting)
        left += sum(self.seconds[r.name] for r, _, _ in self.running.values()) / 2
        expected = sum(expected for expected, _ in self.ended)
        taken = sum(taken for _, taken in self.ended)
        left *= taken / max(expected, 1e-9) / self.max_parallel
        print(
            f"done     {planned.name} in {duration(seconds)}; {len(self.ended)} of {self.total}, "
            f"about {duration(left)} left",
            flush=True,
        )


def _start(planned: PlannedRun, ranks: int, max_parallel: int) -> subprocess.Popen[bytes]:
    planned.folder.mkdir(parents=True, exist_ok=True)
    config_file.save(planned.config, planned.folder / SUBMITTED)
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    command += [planned.module, "--config", str(planned.folder / SUBMITTED)]
    threads = estimate.threads(ranks, max_parallel)
    paths = [str(submit.PROJECT), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": str(threads)} | os.environ | messages.NO_NEXT_STEPS
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with (planned.folder / LOG).open("ab") as log:
        # In a new session, so that only this process gets the SIGINT of Ctrl-C and forwards it.
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=variables, start_new_session=True
        )


def _needs_any(planned: PlannedRun, names: set[str]) -> bool:
    """Whether a run needs one of these runs, directly or indirectly."""
    return any(needed.name in names or _needs_any(needed, names) for needed in planned.needs)


def _add_elapsed(planned: PlannedRun, seconds: float) -> None:
    write_json(planned.folder / ELAPSED, {"seconds": seconds + (elapsed(planned) or 0.0)})


def elapsed(planned: PlannedRun) -> float | None:
    """Seconds that a run took on this machine, over all its starts; None if it ran elsewhere."""
    try:
        return json.loads((planned.folder / ELAPSED).read_text())["seconds"]
    except (OSError, ValueError, KeyError):
        return None


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it printed nothing"


def duration(seconds: float) -> str:
    """A time as text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def on_slurm(
    output: Path, planned_runs: Sequence[PlannedRun], resources: Resources
) -> list[submitit.Job[None]]:
    """Submit all runs: an array for each depth, which starts after the array before it.

    Raises:
        UserError: sbatch fails, or jobs of these runs have not ended.
    """
    submit.snapshot_code_and_config(output, [planned.config for planned in planned_runs], resources)
    all_jobs: list[submitit.Job[None]] = []
    dependency = None
    for depth in sorted({planned.depth for planned in planned_runs}):
        same_depth = [planned for planned in planned_runs if planned.depth == depth]
        tasks = [
            Task(planned.module, ("--config", str(planned.folder / SUBMITTED)), str(Path.cwd()))
            for planned in same_depth
        ]
        jobs = submit.submit(tasks, output, resources, dependency)
        for planned, job in zip(same_depth, jobs, strict=True):
            kind = _KINDS.get(planned.module, "evaluate")
            Submission.of(planned.folder, kind, "slurm", job).write()
        job_ids = ":".join(submit.job_ids(jobs))
        dependency = f"afterok:{job_ids}"
        print(f"job {job_ids}: {', '.join(r.name for r in same_depth)}", flush=True)
        all_jobs += jobs
    return all_jobs
