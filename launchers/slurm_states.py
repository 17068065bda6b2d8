"""The states of jobs, from SLURM's squeue and sacct, or from the processes of this machine.

In: `Submission`s. Out: `TaskState`s, one for each task of an array.
"""

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from submitit.slurm.slurm import SlurmInfoWatcher

from launchers.run_status import Submission
from pipeline.errors import UserError

WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING")
RUNNING_STATES = ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT")
_SQUEUE = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%N|%r|%L")
_SACCT = ("sacct", "--allocations", "--parsable2", "--format=JobID,State,NodeList")
# Part of the command line of the process that submitit starts for a job on this machine.
_LOCAL_CONTROLLER = b"submitit.local._local"


class TaskState(NamedTuple):
    """The state of one job, or of one task of an array."""

    name: str  # as SLURM writes it: PENDING, RUNNING, COMPLETED, FAILED, ...
    nodes: str = ""
    reason: str = ""  # why it waits
    time_left: str = ""  # until its time limit, as SLURM writes it

    @property
    def is_active(self) -> bool:
        """Whether the job runs, or waits to run."""
        return self.name in WAITING_STATES + RUNNING_STATES


def states_of(submissions: Sequence[Submission]) -> list[list[TaskState]]:
    """The states of each submission's tasks, in the order of the tasks.

    A submission's list is empty if its states are unknown, for example because this machine has no
    squeue.

    Raises:
        UserError: squeue fails.
    """
    jobs = {submission.jobs[0] for submission in submissions if submission.cluster == "slurm"}
    slurm_states = _query_slurm(jobs) if jobs and shutil.which("squeue") else {}
    return [
        _slurm_states_of(submission, slurm_states)
        if submission.cluster == "slurm"
        else [_local_state(submission)]
        for submission in submissions
    ]


def _slurm_states_of(submission: Submission, states: dict[str, TaskState]) -> list[TaskState]:
    """The states of one submission's tasks, from those of all jobs."""
    job = submission.jobs[0]
    if job in states:
        return [states[job]]
    tasks = (key for key in states if key.startswith(job + "_"))
    return [states[key] for key in sorted(tasks, key=lambda key: int(key.rpartition("_")[2]))]


def _query_slurm(jobs: set[str]) -> dict[str, TaskState]:
    """States by job id, or by JOB_INDEX for a task of an array.

    squeue overrides sacct, which lags.
    """
    states: dict[str, TaskState] = {}
    ids = {job.partition("_")[0] for job in jobs}
    sacct = subprocess.run([*_SACCT, "-j", ",".join(sorted(ids))], capture_output=True, text=True)
    if sacct.returncode == 0:  # it fails on a cluster without accounting
        for job, fields in SlurmInfoWatcher().read_info(sacct.stdout).items():
            states[job] = TaskState(fields["State"].split()[0], fields["NodeList"])
    squeue = subprocess.run(_SQUEUE, capture_output=True, text=True)
    if squeue.returncode != 0:
        raise UserError(squeue.stderr.strip() or "squeue failed")
    for line in squeue.stdout.splitlines():
        job, name, nodes, reason, time_left = line.split("|")
        if job.partition("_")[0] not in ids:
            continue
        if name in WAITING_STATES:
            states[job] = TaskState(name, nodes, reason=reason)
        else:
            states[job] = TaskState(name, nodes, time_left=time_left)
    return states


def _local_state(submission: Submission) -> TaskState:
    """The state of a job on this machine; ENDED if it has ended without a summary, UNKNOWN on any
    other machine."""
    if submission.host != socket.gethostname():
        return TaskState("UNKNOWN", submission.host)
    if running_processes(submission):
        return TaskState("RUNNING", submission.host)
    name = "COMPLETED" if (submission.folder / "summary.json").exists() else "ENDED"
    return TaskState(name, submission.host)


def running_processes(submission: Submission) -> list[str]:
    """The ids of a submission's processes that run on this machine.

    The command line is checked, since the system may have given an id to another program.
    """
    if submission.cluster != "local" or submission.host != socket.gethostname():
        return []
    return [job for job in submission.jobs if _LOCAL_CONTROLLER in _command_line(job)]


def _command_line(process: str) -> list[bytes]:
    try:
        return Path("/proc", process, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
