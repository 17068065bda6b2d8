"""The states of jobs, as SLURM's queue and accounts or this machine's processes have them.

In: `Submission`s. Out: `State`s, one for each task of an array.
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

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING")
GOING = ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT")
_QUEUE = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%N|%r|%L")
_CONTROLLER = b"submitit.local._local"
_ACCOUNTS = ("sacct", "--allocations", "--parsable2", "--format=JobID,State,NodeList")


class State(NamedTuple):
    """Of one job, or of one task of an array."""

    name: str  # SLURM's word: PENDING, RUNNING, COMPLETED, FAILED, ...
    nodes: str = ""
    reason: str = ""  # why it waits
    limit: str = ""  # what is left until its time limit, as SLURM writes it

    @property
    def live(self) -> bool:
        """Whether it runs or may yet run."""
        return self.name in WAITING + GOING


def of(submissions: Sequence[Submission]) -> list[list[State]]:
    """The states of each submission's tasks, in their order; empty where nothing is known, as away
    from the cluster.

    Raises:
        UserError: SLURM does not answer.
    """
    jobs = {job for each in submissions if each.cluster == "slurm" for job in each.jobs[:1]}
    known = _slurm(jobs) if jobs and shutil.which("squeue") else {}
    return [_of(each, known) for each in submissions]


def _of(submission: Submission, known: dict[str, State]) -> list[State]:
    if submission.cluster != "slurm":
        return [_here(submission)]
    job = submission.jobs[0]
    if job in known:
        return [known[job]]
    tasks = (key for key in known if key.startswith(job + "_"))
    return [known[key] for key in sorted(tasks, key=lambda key: int(key.rpartition("_")[2]))]


def _slurm(jobs: set[str]) -> dict[str, State]:
    """By job, or job_task of an array; the queue's word is newer than the accounts'."""
    known, arrays = {}, {job.partition("_")[0] for job in jobs}
    accounts = subprocess.run(
        [*_ACCOUNTS, "-j", ",".join(sorted(arrays))], capture_output=True, text=True
    )
    if accounts.returncode == 0:  # else this cluster keeps none
        for job, account in SlurmInfoWatcher().read_info(accounts.stdout).items():
            known[job] = State(account["State"].split()[0], account["NodeList"])
    queue = subprocess.run(_QUEUE, capture_output=True, text=True)
    if queue.returncode != 0:
        raise UserError(queue.stderr.strip() or "squeue failed")
    for line in queue.stdout.splitlines():
        job, state, nodes, reason, limit = line.split("|")
        if job.partition("_")[0] in arrays:
            waits = state in WAITING
            known[job] = State(state, nodes, reason if waits else "", "" if waits else limit)
    return known


def _here(submission: Submission) -> State:
    """Of a process of this machine, which leaves no account."""
    if processes(submission):
        return State("RUNNING", submission.host)
    ended = "COMPLETED" if (submission.folder / "summary.json").exists() else "ENDED"
    return State(ended, submission.host)


def processes(submission: Submission) -> list[str]:
    """Those of its processes that run on this machine; a number may be another program's by now."""
    if submission.cluster != "local" or submission.host != socket.gethostname():
        return []
    return [job for job in submission.jobs if _CONTROLLER in _words(job)]


def _words(process: str) -> list[bytes]:
    try:
        return Path("/proc", process, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
