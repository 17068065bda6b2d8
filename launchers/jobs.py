"""This project's runs: what they do, how far they are; stop them, read their logs.

python launchers/jobs.py                      # the runs in and below runs/
python launchers/jobs.py --watch /scratch/runs runs
python launchers/jobs.py cancel runs/r18      # also what waits for it, and all of a sweep
python launchers/jobs.py logs runs/r18 --follow
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launchers import run_status, slurm_states
from launchers.run_status import Submission
from launchers.slurm_states import State
from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.errors import UserError, exit_on_user_error

COMMANDS = ("list", "cancel", "logs")


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help="the runs; without a command, this is done")
    listed.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER")
    listed.add_argument(
        "--watch",
        action="store_true",
        help="until interrupted",
    )
    listed.add_argument(
        "--every",
        type=arguments.Number(float, Range(minimum=0.1, maximum=86_400, unit="seconds")),
        default=10.0,
        metavar="SECONDS",
        help="between looks (%(default)s)",
    )
    ended = commands.add_parser("cancel", help="let a run save and end; also what is below it")
    ended.add_argument("folders", nargs="+", type=Path, metavar="RUN")
    shown = commands.add_parser("logs", help="the end of a run's logs")
    shown.add_argument("folders", nargs="+", type=Path, metavar="RUN")
    shown.add_argument("--follow", action="store_true", help="until interrupted")
    shown.add_argument(
        "--lines", type=arguments.POSITIVE, default=20, help="of each log (%(default)s)"
    )
    return top


def found(folders: Sequence[Path]) -> list[Submission]:
    """The submissions in and below these folders.

    Raises:
        UserError: there are none.
    """
    known = run_status.find(folders)
    if not known:
        names = ", ".join(map(str, folders))
        raise UserError(f"no runs that a launcher submitted in {names}; name their folder")
    return known


def table(known: Sequence[Submission]) -> Table:
    """A line for each run."""
    view = Table(box=None, header_style="bold")
    for name in ("run", "job", "state", "nodes"):
        view.add_column(name, overflow="fold")
    for name in ("progress", "images/s", "rho", "left", "limit"):
        view.add_column(name, justify="right", overflow="fold")
    for each, tasks in zip(known, slurm_states.of(known), strict=True):
        view.add_row(*_cells(each, tasks))
    return view


def _cells(run: Submission, tasks: list[State]) -> list[str]:
    going = [state for state in tasks if state.name in slurm_states.GOING]
    far = run_status.progress(run)
    steps = f"{far.doing} {far.done}/{far.total}" if far.total else ""
    if steps and far.at:
        steps += f", {far.at}"
    if not steps and any(state.name == "RUNNING" for state in tasks):
        steps = "starting"
    rate = f"{far.images_per_second:.4g}" if far.images_per_second and going else ""
    left = far.seconds_left if going else None
    nodes = ", ".join(dict.fromkeys(state.nodes for state in going if state.nodes))
    limits = sorted({state.limit for state in going if state.limit}, key=len)
    rho = f"{far.rho:.4g}" if far.rho is not None else ""
    place = os.path.relpath(run.folder)
    return [
        place,
        run.jobs[0],
        _said(run, tasks),
        nodes,
        steps,
        rate,
        rho,
        _clock(left),
        *limits[:1],
    ]


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _said(run: Submission, tasks: list[State]) -> str:
    """The states in words, with why it waits or what may be wrong."""
    if not tasks:
        return "unknown"
    counts = Counter(state.name for state in tasks)
    said = ", ".join(name if len(tasks) == 1 else f"{n} {name}" for name, n in counts.items())
    reasons = dict.fromkeys(s.reason for s in tasks if s.reason not in ("", "None"))
    if reasons:
        said += f" ({', '.join(reasons)})"
    return said + _blind(run, tasks)


def _blind(run: Submission, tasks: list[State]) -> str:
    """What a job that failed before it could say anything hints at."""
    failed = any(state.name in ("FAILED", "ENDED") for state in tasks)
    if failed and not any(Path(log).exists() for log in run.logs):
        return f"; it left no log: can the nodes see {run.folder}?"
    return ""


def show(options: argparse.Namespace) -> None:
    """``list``."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # nothing is folded; the table is as wide as it must be
    if not options.watch:
        console.print(table(found(options.folders)), soft_wrap=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(found(options.folders)), refresh=True)
            time.sleep(options.every)


def cancel(options: argparse.Namespace) -> None:
    """``cancel``: what waits for a job before the job itself."""
    known = found(options.folders)
    for each, tasks in reversed(list(zip(known, slurm_states.of(known), strict=True))):
        if not any(state.live for state in tasks):
            continue
        if each.cluster == "slurm":
            jobs = [job for job in (each.joined_by, *each.jobs) if job]
            done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
            if done.returncode != 0:
                raise UserError(done.stderr.strip() or f"scancel {' '.join(jobs)} failed")
        else:
            jobs = slurm_states.processes(each)
            for job in jobs:
                os.kill(int(job), signal.SIGTERM)
        print(f"cancelled job {', '.join(jobs)}: {each.folder}")


def logs(options: argparse.Namespace) -> None:
    """``logs``."""
    known = found(options.folders)
    paths = [log for each in known for log in each.logs if Path(log).exists()]
    for each, tasks in zip(known, slurm_states.of(known), strict=True):
        if not any(Path(log).exists() for log in each.logs):
            print(f"{each.folder}: no log yet; job {each.jobs[0]} is {_said(each, tasks)}")
    if paths:
        sys.stdout.flush()
        follow = ["-F"] if options.follow else []
        os.execvp("tail", ["tail", "-n", str(options.lines), *follow, "--", *paths])


def main() -> None:
    """Do what is asked for; without a command, list."""
    words = sys.argv[1:]
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words = ["list", *words]
    options = parser().parse_args(words)
    with exit_on_user_error():
        try:
            {"list": show, "cancel": cancel, "logs": logs}[options.command](options)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
