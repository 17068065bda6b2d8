"""Waiting for jobs, with their logs on the screen (--wait).

In: submitted jobs. Out: their logs, and an error if one failed.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

import submitit

from launchers.options import Resources
from pipeline.errors import UserError

_POLL_SECONDS = 2


def follow(jobs: Sequence[submitit.Job[None]], resources: Resources, *, wait: bool) -> None:
    """Wait for the jobs and show their logs, one after the other.

    Does nothing without ``wait``, except with --cluster debug, where this is what runs the jobs.

    Raises:
        UserError: a job failed.
    """
    if wait or resources.cluster == "debug":
        for job in jobs:
            _follow(job)


def _is_in_queue(job: submitit.Job[None]) -> bool:
    """Whether a job that submitit takes for ended is in SLURM's queue.

    SLURM puts it there again after the failure of a node. Only squeue is asked: sacct lags.
    """
    if not isinstance(job, submitit.SlurmJob):
        return False
    argv = ("squeue", "--noheader", "--jobs", job.job_id, "--format", "%T")
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:  # SLURM has forgotten the job; or its controller does not answer: ask again
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())


def _follow(job: submitit.Job[None]) -> None:
    """Show the job's log until the job has ended.

    Raises:
        UserError: the job failed.
    """
    num_bytes_shown = 0
    while True:
        done = job.done(force_check=True) and not _is_in_queue(job)
        if job.paths.stdout.exists():
            with job.paths.stdout.open("rb") as log:
                log.seek(num_bytes_shown)
                text = log.read()
            num_bytes_shown += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if done:
            break
        time.sleep(_POLL_SECONDS)
    # submitit waits 15 s for each task that has left no result: the first one is enough.
    errors = (job.task(number).exception() for number in range(job.num_tasks))
    error = next((error for error in errors if error is not None), None)
    if error is not None and not job.paths.stdout.exists():
        raise UserError(
            f"job {job.job_id} ended without a log: can the nodes see {job.paths.folder}? Give an "
            "--output on a file system that all nodes share"
        )
    if error is not None:
        raise UserError(f"job {job.job_id} failed; its log is {job.paths.stdout}")
