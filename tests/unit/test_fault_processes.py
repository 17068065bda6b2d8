"""tools/chaos.py: which processes of a command are its ranks."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import psutil
import pytest

from fault_campaign import processes

Variables = dict[str, object]
Start = Callable[..., psutil.Process]


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def start(mark: str) -> Iterator[Start]:
    """Start a marked process that waits, with these variables besides the mark."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(**variables: object) -> psutil.Process:
        environment = {"PATH": os.environ["PATH"], processes.MARK: mark}
        environment |= {name: str(value) for name, value in variables.items()}
        waits = [sys.executable, "-S", "-c", "print(flush=True); input()"]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(waits, stdin=pipe, stdout=pipe, env=environment))
        assert started[-1].stdout is not None
        started[-1].stdout.readline()
        return psutil.Process(started[-1].pid)

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


TASK: Variables = {"SLURM_PROCID": 0, "SLURM_TASK_PID": 100}  # of the job in which the tool runs
TORCHRUN: Variables = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("inherited", "rank_variables"),
    [
        ({}, [{}]),
        ({}, [TORCHRUN | {"RANK": 0}, TORCHRUN | {"RANK": 1}]),
        (TASK, [TASK | TORCHRUN | {"RANK": 0}, TASK | TORCHRUN | {"RANK": 1}]),
        (TASK | {"RANK": 0}, [TASK | TORCHRUN | {"RANK": 0}, TASK | TORCHRUN | {"RANK": 1}]),
        (TASK, [{"SLURM_PROCID": rank, "SLURM_TASK_PID": 200 + rank} for rank in (0, 1)]),
        (
            TASK,
            [TASK | {"SUBMITIT_LOCAL_GLOBALID": r, "SUBMITIT_LOCAL_JOB_ID": 7} for r in (0, 1)],
        ),
    ],
    ids=["one process", "torchrun", "torchrun in a job", "RANK in a job", "srun in a job", "local"],
)
def test_ranks(
    mark: str, start: Start, inherited: Variables, rank_variables: list[Variables]
) -> None:
    """A variable that the command inherited is not the number of a rank."""
    command = start(**inherited)
    expected = [command]
    if rank_variables != [{}]:
        expected = [start(**variables) for variables in rank_variables]
        start(**rank_variables[0])  # a child of rank 0
    assert processes.ranks(processes.marked(mark), command.pid) == expected


def test_a_command_without_ranks_in_a_job(mark: str, start: Start) -> None:
    """All of its processes have the number of the job's task."""
    command = start(**TASK)
    start(**TASK)
    assert processes.ranks(processes.marked(mark), command.pid) == [command]


def test_torchrun_that_is_a_task_itself(mark: str, start: Start) -> None:
    """srun starts torchrun, which starts the ranks."""
    command = start()
    start(**TASK)
    workers = [start(**TASK, **TORCHRUN, RANK=rank) for rank in (0, 1)]
    assert processes.ranks(processes.marked(mark), command.pid) == workers
