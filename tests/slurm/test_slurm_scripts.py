"""slurm/evaluate.sbatch in a job that is not an array."""

import os
import subprocess

from tests.helpers.runs import ROOT


def test_a_job_that_is_not_an_array() -> None:
    outside = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    argv = ("bash", ROOT / "slurm" / "evaluate.sbatch")
    done = subprocess.run(argv, env=outside | {"SLURM_JOB_ID": "1"}, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this job is not an array; submit it with: sbatch --array")
