"""The part of a batch script that requeues a job when one of its tasks was killed."""

import shlex
from pathlib import Path

from pipeline.errors import LOST_EXIT_CODE

_MAX_REQUEUES_AFTER_KILL = 5


def requeue_script(deaths: Path) -> list[str]:
    """Lines of the batch script after srun, which requeue the job when one of its tasks was killed.

    They do not requeue it when it was itself cancelled, when a task exited with an error of its
    own, or after `_MAX_REQUEUES_AFTER_KILL` times.

    Args:
        deaths: a file that gets one line each time; the job's id, and an array's index, are
            appended to its name, so that a later job in the same folder counts from zero.
    """
    file = shlex.quote(f"{deaths}-") + '"$job"'
    return [
        "code=$?",
        # SLURM gives the last task of an array the id of the whole array, and requeueing that id
        # would start all tasks again. So an array's task is named by array and index.
        "job=$SLURM_JOB_ID",
        '[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
        # Above 128: killed by a signal; 255: the job itself was cancelled or timed out.
        f'if [ "$code" -eq {LOST_EXIT_CODE} ] ||'
        ' { [ "$code" -gt 128 ] && [ "$code" -lt 255 ]; }; then',
        f"  date >> {file}",
        f'  if [ "$(wc -l < {file})" -le {_MAX_REQUEUES_AFTER_KILL} ]; then',
        '    scontrol requeue "$job" && sleep 60',
        "  fi",
        "fi",
        'exit "$code"',
    ]
