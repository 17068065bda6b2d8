"""Runs under torchrun, with which runs on SLURM are compared."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.runs import command, environment
from tests.helpers.slurm import PLAIN


def under_torchrun(folder: Path, ranks: int) -> Path:
    argv = command("pipeline/finetune.py", *PLAIN, "--output", folder, ranks=ranks)
    subprocess.run(argv, check=True, env=environment(), capture_output=True)
    return folder


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tests under torchrun on this machine, with two ranks."""
    return under_torchrun(tmp_path_factory.mktemp("two") / "run", 2)


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with four ranks."""
    return under_torchrun(tmp_path_factory.mktemp("four") / "run", 4)
