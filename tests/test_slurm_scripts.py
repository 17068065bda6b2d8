"""The scripts in slurm/ where there is no SLURM."""

import os
import subprocess

import pytest

from tests.runs import ROOT


@pytest.mark.parametrize("name", ["finetune", "evaluate"])
def test_without_slurm_they_say_so_in_one_line(name: str) -> None:
    outside = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    words = ("bash", f"slurm/{name}.sbatch", "--output", "x")
    done = subprocess.run(words, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this script runs in a job")
    assert line.endswith(f"pipeline/{name}.py --output x")
