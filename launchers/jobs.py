"""Show the progress of submitted runs, cancel them, and show their logs.

python launchers/jobs.py                      # lists the runs in and below runs/
python launchers/jobs.py --watch /scratch/runs runs
python launchers/jobs.py cancel runs/r18      # and all runs below that folder
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
from launchers.slurm_states import TaskState
from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, exit_on_user_error

COMMANDS = ("list", "cancel", "logs")
_INTERRUPTED_EXIT_CODE = 130  # the shell's convention for a program that Ctrl-C ended


def parser() -> arguments.Parser:
    """The parser of the command line."""
    top = arguments.Parser(description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    list_parser = commands.add_parser("list", help="show the runs; this is the default command")
    list_parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help="show the runs in and below these folders (default: runs)",
    )
    list_parser.add_argument(
        "--watch", action="store_true", help="update the table until Ctrl-C is pressed"
    )
    list_parser.add_argument(
        "--every",
        type=arguments.Number(float, Range(minimum=0.1, maximum=86_400, unit="seconds")),
        default=10.0,
        metavar="SECONDS",
        help="time between two updates with --watch (default: %(default)s)",
    )
    cancel_parser = commands.add_parser("cancel", help="cancel runs; each saves its state first")
    logs_parser = commands.add_parser("logs", help="show the end of the logs of runs")
    for subparser in (cancel_parser, logs_parser):
        subparser.add_argument(
            "folders",
            nargs="+",
            type=Path,
            metavar="RUN",
            help="folders of runs; runs in folders below them are included",
        )
    logs_parser.add_argument(
        "--follow", action="store_true", help="show new lines until Ctrl-C is pressed"
    )
    logs_parser.add_argument(
        "--lines",
        type=arguments.POSITIVE,
        default=20,
        help="number of lines to show of each log (default: %(default)s)",
    )
    return top


def find_submissions(folders: Sequence[Path]) -> list[Submission]:
    """The submissions in and below these folders.

    Raises:
        UserError: there are none.
    """
    submissions = run_status.find_submissions(folders)
    if not submissions:
        names = ", ".join(map(str, folders))
        raise UserError(f"no runs that a launcher submitted in {names}; give the folder of a run")
    return submissions


def make_table(submissions: Sequence[Submission]) -> Table:
    """A table with one row for each run."""
    table = Table(box=None, header_style="bold")
    for name in ("run", "job", "state", "nodes"):
        table.add_column(name, overflow="fold")
    for name in ("progress", "images/s", "rho", "left", "limit"):
        table.add_column(name, justify="right", overflow="fold")
    for submission, states in zip(submissions, slurm_states.states_of(submissions), strict=True):
        table.add_row(*_cells(submission, states))
    return table


def _cells(submission: Submission, states: Sequence[TaskState]) -> list[str]:
    """The row of one run, from its files and the states of its tasks."""
    running = [state for state in states if state.name in slurm_states.RUNNING_STATES]
    progress = run_status.read_progress(submission)
    progress_text = _progress_text(progress)
    if not progress_text and any(state.name == "RUNNING" for state in states):
        progress_text = "starting"
    rate = f"{progress.images_per_second:.4g}" if progress.images_per_second and running else ""
    rho = f"{progress.rho:.4g}" if progress.rho is not None else ""
    nodes = dict.fromkeys(state.nodes for state in running if state.nodes)
    # SLURM writes D-HH:MM:SS without leading zeros, so a shorter text is a shorter time.
    limits = {state.time_left for state in running if state.time_left}
    limits = sorted(limits, key=lambda text: (len(text), text))
    return [
        os.path.relpath(submission.folder),
        submission.jobs[0],
        _state_text(submission, states),
        ", ".join(nodes),
        progress_text,
        rate,
        rho,
        _duration(progress.seconds_left if running else None),
        *limits[:1],
    ]


def _progress_text(progress: run_status.RunProgress) -> str:
    if not progress.total:
        return ""
    text = f"{progress.activity} {progress.num_done}/{progress.total}"
    return f"{text}, {progress.training_step}" if progress.training_step else text


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _state_text(submission: Submission, states: Sequence[TaskState]) -> str:
    """The states of the tasks, the reasons why they wait, and a hint if there is no log."""
    if not states:
        return "unknown"
    counts = Counter(state.name for state in states)
    text = ", ".join(name if len(states) == 1 else f"{n} {name}" for name, n in counts.items())
    reasons = dict.fromkeys(state.reason for state in states if state.reason not in ("", "None"))
    if reasons:
        text += f" ({', '.join(reasons)})"
    return text + _no_log_hint(submission, states)


def _no_log_hint(submission: Submission, states: Sequence[TaskState]) -> str:
    """A hint for jobs that failed before they wrote a log; empty for all others."""
    failed = any(state.name in ("FAILED", "ENDED") for state in states)
    if failed and not any(Path(log).exists() for log in submission.logs):
        return f"; there is no log: can the nodes see {submission.folder}?"
    return ""


def show(args: argparse.Namespace) -> None:
    """The command ``list``."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # wide enough that no cell is folded
    if not args.watch:
        console.print(make_table(find_submissions(args.folders)), soft_wrap=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(make_table(find_submissions(args.folders)), refresh=True)
            time.sleep(args.every)


def cancel(args: argparse.Namespace) -> None:
    """The command ``cancel``. Jobs that wait for others are cancelled before them."""
    submissions = find_submissions(args.folders)
    states = slurm_states.states_of(submissions)
    for submission, task_states in reversed(list(zip(submissions, states, strict=True))):
        if not any(state.is_active for state in task_states):
            continue
        if submission.cluster == "slurm":
            jobs = [job for job in (submission.joined_by, *submission.jobs) if job]
            scancel = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
            if scancel.returncode != 0:
                raise UserError(scancel.stderr.strip() or f"scancel {' '.join(jobs)} failed")
        else:
            jobs = slurm_states.running_processes(submission)
            for job in jobs:
                os.kill(int(job), signal.SIGTERM)
        print(f"cancelled job {', '.join(jobs)}: {submission.folder}")


def logs(args: argparse.Namespace) -> None:
    """The command ``logs``."""
    submissions = find_submissions(args.folders)
    paths = [log for submission in submissions for log in submission.logs if Path(log).exists()]
    for submission, states in zip(submissions, slurm_states.states_of(submissions), strict=True):
        if not any(Path(log).exists() for log in submission.logs):
            text = _state_text(submission, states)
            print(f"{submission.folder}: no log yet; state of job {submission.jobs[0]}: {text}")
    if paths:
        sys.stdout.flush()
        follow = ["-F"] if args.follow else []
        os.execvp("tail", ["tail", "-n", str(args.lines), *follow, "--", *paths])


def check_command(args: argparse.Namespace) -> None:
    """Refuse a misspelt command, which is read as a folder of ``list``.

    Raises:
        UserError: names the nearest command.
    """
    if args.command == "list":
        first = args.folders[0]
        hint = did_you_mean(str(first), COMMANDS)
        if hint and not first.exists():
            raise UserError(f"no command or folder {first}{hint}")


def main() -> None:
    """Run the command; without one, run ``list``."""
    argv = sys.argv[1:]
    if not argv or argv[0] not in (*COMMANDS, "-h", "--help"):
        argv = ["list", *argv]
    args = parser().parse_args(argv)
    with exit_on_user_error():
        check_command(args)
        try:
            {"list": show, "cancel": cancel, "logs": logs}[args.command](args)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED_EXIT_CODE) from None


if __name__ == "__main__":
    main()
