"""Jobs of SLURM that a command has submitted, and faults of SLURM itself."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

SUBMISSION = "submission.json"  # of the launchers
INTERRUPTION_SECONDS = 180.0  # for SLURM to interrupt a job
RESTART_SECONDS = 600.0  # for SLURM to start it again
_POLL_SECONDS = 1.0  # each poll is a request to SLURM's controller
_ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")
_SUBMITTED = re.compile(r"Submitted batch job (\d+)")


def jobs_of(folder: Path, output: str) -> list[str]:
    """The jobs of a run, by number.

    Args:
        folder: of the run; a launcher writes the jobs into it.
        output: what sbatch has printed.
    """
    return _submission(folder, "jobs") + _SUBMITTED.findall(output)


def log_of(folder: Path) -> str:
    """What the jobs of a launcher have printed so far; it shows that with a delay."""
    paths = map(Path, _submission(folder, "logs"))
    return "".join(path.read_text(errors="replace") for path in paths if path.exists())


def _submission(folder: Path, name: str) -> list[str]:
    try:
        values: list[str] = json.loads((folder / SUBMISSION).read_text())[name]
    except (OSError, ValueError, KeyError):
        return []
    return values


def fields_of(job: str) -> dict[str, str]:
    """The fields that SLURM knows of a job, by name; none if it has forgotten the job."""
    done = _slurm("scontrol", "--oneliner", "show", "job", job)
    return dict(re.findall(r"(\w+)=(\S*)", done.stdout)) if done.returncode == 0 else {}


def is_active(job: str) -> bool:
    """Whether a job runs, or waits to run."""
    return fields_of(job).get("JobState", "") in _ACTIVE


def is_running(job: str) -> bool:
    """Whether a job runs."""
    return fields_of(job).get("JobState", "") == "RUNNING"


def any_running(jobs: Sequence[str]) -> bool:
    """Whether one of the jobs runs; else waits a little, so that it can be asked repeatedly."""
    if any(is_running(job) for job in jobs):
        return True
    time.sleep(_POLL_SECONDS)
    return False


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; nothing if they have ended."""
    if jobs:
        _slurm("scancel", *jobs)


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
        fields = fields_of(job)
        if fields.get("Restarts", restarts) != restarts:
            return True
        if fields.get("JobState") not in ("RUNNING", "COMPLETING"):
            return fields.get("JobState", "COMPLETED") != "COMPLETED"
        time.sleep(_POLL_SECONDS)
    return False


def wait_for_restart(job: str) -> None:
    """Wait until a job that was interrupted runs again, or has ended, or `RESTART_SECONDS`."""
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline and is_active(job) and not is_running(job):
        time.sleep(_POLL_SECONDS)


def urgent_partition(argv: Sequence[str]) -> str:
    """A partition whose jobs preempt those of a command; empty if there is none.

    Args:
        argv: the command, which names its partition or uses the default one.
    """
    if "preempt/partition_prio" not in _slurm("scontrol", "show", "config").stdout:
        return ""
    text = _slurm("scontrol", "--oneliner", "show", "partition").stdout
    partitions = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    named = re.search(r"(?:--partition|-p)[= ](\S+)", " ".join(argv))
    tiers = {part["PartitionName"]: int(part["PriorityTier"]) for part in partitions}
    own = [part["PartitionName"] for part in partitions if part.get("Default") == "YES"]
    own = [named[1]] if named else own
    if not own or own[0] not in tiers:
        return ""
    above = [name for name, tier in tiers.items() if tier > tiers[own[0]]]
    return min(above, key=lambda name: tiers[name], default="")


def missing_programs() -> str:
    """Why jobs cannot be interrupted on this machine; empty if they can."""
    absent = [name for name in ("scontrol", "scancel", "sbatch") if shutil.which(name) is None]
    return f"needs the programs {', '.join(absent)}" if absent else ""


def requeue(job: str) -> str:
    """Requeue a job, as an administrator does before maintenance; returns what was done."""
    _command("scontrol", "requeue", job)
    return f"job {job} requeued"


def cancel_running(job: str) -> str:
    """Cancel a job; returns what was done."""
    _command("scancel", job)
    return f"job {job} cancelled"


def warn(job: str) -> str:
    """Send the signal that SLURM sends before a time limit; returns what was done.

    A batch script of one step gets it itself (slurm/finetune.sbatch), the tasks of submitit do not
    have a script that waits for it.
    """
    script = fields_of(job).get("Command", "")
    to_script = ("--batch",) if script.endswith(".sbatch") else ()
    _command("scancel", *to_script, "--signal=USR2", job)
    return f"signal USR2 to job {job}"


def preempt(job: str, partition: str) -> str:
    """Submit a short job to a partition of higher priority, on the same nodes, and wait until it
    has ended; returns what was done."""
    nodes = fields_of(job)["NodeList"]
    short = ("--partition", partition, "--nodelist", nodes, "--exclusive", "--wrap", "sleep 1")
    _command("sbatch", *short, "--output", os.devnull, "--job-name", "preempt")
    return f"a job in the partition {partition} on {nodes}"


def take_node_down(job: str, position: float) -> tuple[str, str]:
    """Mark one of the nodes of a job as down.

    Args:
        job: its number.
        position: which node, in [0, 1).

    Returns:
        What was done, and the node.
    """
    nodes = _slurm("scontrol", "show", "hostnames", fields_of(job)["NodeList"]).stdout.split()
    node = nodes[int(position * len(nodes))]
    _command("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
    return f"node {node} down", node


def bring_node_back(node: str) -> None:
    """Let SLURM use a node again."""
    _slurm("scontrol", "update", f"nodename={node}", "state=resume")


def _slurm(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def _command(*argv: str) -> None:
    """Raises `subprocess.CalledProcessError` if SLURM refuses it."""
    subprocess.run(argv, capture_output=True, text=True, check=True)
