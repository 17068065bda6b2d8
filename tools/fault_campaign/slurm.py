"""Jobs of SLURM that a command has submitted: their numbers, states and logs.

Numbers of jobs come from files and may be those of other jobs by now. So a job is cancelled only if
what SLURM knows of it names the folder of the run.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fault_campaign.refused import FaultRefusedError
from launchers import run_status
from launchers.slurm_states import RUNNING_STATES, WAITING_STATES
from pipeline.errors import UserError

INTERRUPTION_SECONDS = 180.0  # for SLURM to interrupt a job
RESTART_SECONDS = 600.0  # for SLURM to start it again
_ANSWER_SECONDS = 60.0  # for SLURM's controller to answer
POLL_SECONDS = 1.0  # each poll is a request to SLURM's controller
_HELD = "launch_failed_requeued_held"
_TEXT = "text"  # all that SLURM prints of a job
_SUBMITTED = re.compile(r"Submitted batch job (\d+)")
_NUMBER = re.compile(r"\d+(_\d+)?")

Record = dict[str, str]  # the fields of a job, or of one task of an array


def jobs_of(folder: Path, output: str) -> list[str]:
    """The jobs of a run, by number; that of an array stands for all its tasks.

    Args:
        folder: of the run; a launcher writes the jobs into it.
        output: what sbatch has printed.
    """
    jobs = _SUBMITTED.findall(output)
    submission = _submission(folder)
    if submission is not None:
        jobs += [*submission.jobs, *filter(None, [submission.joined_by])]
    return [job for job in dict.fromkeys(jobs) if _NUMBER.fullmatch(job)]


def log_of(folder: Path, jobs: Sequence[str]) -> str:
    """What the jobs of a run have printed so far; a launcher shows that with a delay."""
    submission = _submission(folder)
    paths = [] if submission is None else list(submission.logs)
    paths = paths or [record.get("StdOut", "") for job in jobs for record in records_of(job)]
    texts = []
    for path in filter(None, paths):
        with suppress(OSError):
            texts.append(Path(path).read_text(errors="replace"))
    return "".join(texts)


def _submission(folder: Path) -> run_status.Submission | None:
    path = folder / run_status.FILE_NAME
    try:
        submission = run_status.read(path) if path.exists() else None
    except (UserError, OSError):
        return None
    return submission if submission and submission.cluster == "slurm" else None


def records_of(job: str) -> list[Record]:
    """What SLURM knows of a job: a record for each task of an array, else one; none if it has
    forgotten the job.

    Raises:
        FaultRefusedError: the controller does not answer.
    """
    if not _NUMBER.fullmatch(job) or missing_programs():
        return []
    text = ask("scontrol", "--oneliner", "show", "job", job, unless="Invalid job id")
    return [{_TEXT: line, **_fields(line)} for line in text.splitlines() if line.strip()]


def is_active(record: Record) -> bool:
    """Whether a job runs, or waits to run."""
    return record.get("JobState", "") in WAITING_STATES + RUNNING_STATES


def running(jobs: Sequence[str]) -> list[str]:
    """Those of the jobs, and of the tasks of arrays, that run now, by number."""
    records = [record for job in jobs for record in records_of(job)]
    return [_number(record) for record in records if record.get("JobState") == "RUNNING"]


def cancel_all(jobs: Sequence[str], folder: Path) -> list[str]:
    """Cancel the jobs of a run that are still active; returns their numbers.

    Args:
        jobs: their numbers.
        folder: of the run. Jobs that do not name it are left alone, and so are those that are
            ending.
    """
    left = []
    with suppress(FaultRefusedError):
        for record in [record for job in jobs for record in records_of(job)]:
            is_own = str(folder) in record[_TEXT]
            if is_own and is_active(record) and record["JobState"] != "COMPLETING":
                left.append(_number(record))
    if left:
        _run("scancel", *left)
    return left


def wait_for_interruption(job: str, restarts: str) -> bool:
    """Wait until a job no longer runs, or has been started again.

    Args:
        job: its number.
        restarts: how often it had been started again before.

    Returns:
        Whether it was interrupted; False: it completed, or still runs after `INTERRUPTION_SECONDS`.
    """
    deadline = time.monotonic() + INTERRUPTION_SECONDS
    while time.monotonic() < deadline:
        record = first_record(job)
        if record.get("Restarts", restarts) != restarts:
            return True
        if record.get("JobState") not in ("RUNNING", "COMPLETING"):
            return record.get("JobState", "COMPLETED") != "COMPLETED"
        time.sleep(POLL_SECONDS)
    return False


def wait_for_restart(job: str) -> None:
    """Wait until a job that was interrupted runs again, or has ended, or `RESTART_SECONDS`.

    SLURM holds jobs that it could not start, for example on a node where they had not ended yet. An
    administrator then releases them, and so does this function.
    """
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        for held in records_of(job.partition("_")[0]):  # the other tasks of an array, too
            if held.get("Reason") == _HELD:
                ask("scontrol", "release", _number(held), unless="Invalid job id")
        record = first_record(job)
        if not is_active(record) or record["JobState"] == "RUNNING":
            return
        time.sleep(POLL_SECONDS)


def first_record(job: str) -> Record:
    """What SLURM knows of a job that is not an array; empty if it has forgotten the job."""
    return next(iter(records_of(job)), {})


def urgent_partition(argv: Sequence[str]) -> str:
    """A partition whose jobs preempt those of a command; empty if there is none.

    Args:
        argv: the command, which names its partition or uses the default one.
    """
    if "preempt/partition_prio" not in _run("scontrol", "show", "config").stdout:
        return ""
    text = _run("scontrol", "--oneliner", "show", "partition").stdout
    partitions = {part["PartitionName"]: part for part in map(_fields, text.splitlines())}
    named = re.search(r"(?:--partition|-p)[= ](\S+)", " ".join(argv))
    default = [name for name, part in partitions.items() if part.get("Default") == "YES"]
    own = partitions.get(named[1] if named else next(iter(default), ""))
    if own is None:
        return ""
    tiers = {
        name: int(part["PriorityTier"])
        for name, part in partitions.items()
        if part.get("State") == "UP"
    }
    above = [name for name, tier in tiers.items() if tier > int(own["PriorityTier"])]
    return min(above, key=lambda name: tiers[name], default="")


def missing_programs() -> str:
    """Why jobs cannot be looked up on this machine; empty if they can."""
    absent = [name for name in ("scontrol", "scancel", "sbatch") if shutil.which(name) is None]
    return f"needs the programs {', '.join(absent)}" if absent else ""


def ask(*argv: str, unless: str = "") -> str:
    """Run a program of SLURM until it succeeds; returns what it prints.

    Args:
        argv: the program and its arguments.
        unless: a part of an error message after which the answer is empty.

    Raises:
        FaultRefusedError: it fails for `_ANSWER_SECONDS`.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        done = _run(*argv)
        if done.returncode == 0:
            return done.stdout
        if unless and unless in done.stderr:
            return ""
        if time.monotonic() > deadline:
            raise FaultRefusedError(done.stderr.strip() or f"{argv[0]} failed")
        time.sleep(POLL_SECONDS)


def command(*argv: str) -> str:
    """Run a program of SLURM once; returns what it prints.

    Raises:
        FaultRefusedError: SLURM refuses it; with its words.
    """
    done = _run(*argv)
    if done.returncode:
        raise FaultRefusedError(done.stderr.strip() or f"{argv[0]} failed")
    return done.stdout


def _fields(line: str) -> Record:
    return dict(re.findall(r"(\w+)=(\S*)", line))


def _number(record: Record) -> str:
    task = record.get("ArrayTaskId", "")
    return f"{record['ArrayJobId']}_{task}" if task.isdecimal() else record["JobId"]


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)
