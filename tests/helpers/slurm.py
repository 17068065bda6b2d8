"""What tests on a real SLURM share."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.helpers.runs import ROOT, SMALL, Run, environment, metrics, weights

SCRIPT = "launchers/finetune.py"
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
# 15 steps, and 15 with Deep Defense
PLAIN = (*SMALL, "--model.name", "mlp", "--train.batch_size", 400)
PLAIN += ("--train.pretrain_epochs", 1, "--train.epochs", 1)
TWO_NODES = ("--nodes", 2, "--tasks-per-node", 1, "--time", "5m", "--signal-before", 30)
# What a user's own environment sets: the interpreter that has the packages, ranks without GPUs.
SBATCH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RANKS_PER_NODE": "1"}
SHARDS = SBATCH | {"SHARDS": "3"}


def slurm(*argv: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, argv)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(run: Run, folder: Path, *options: object, where: tuple = TWO_NODES) -> str:
    """Submit a fine-tuning, on two nodes with a task each; the job's number."""
    done = run(SCRIPT, *where, "--", *PLAIN, "--output", folder, *options)
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {shlex.quote(str(folder))}\n" in done.stdout
    return job_of(folder)


def job_of(folder: Path) -> str:
    return json.loads((folder / "submission.json").read_text())["jobs"][0]


def log_of(folder: Path) -> str:
    """All that a run has said."""
    paths = json.loads((folder / "submission.json").read_text())["logs"]
    return "".join(Path(path).read_text() for path in paths if Path(path).exists())


def wait_until(condition: Callable[[], Any], said: Callable[[], str], seconds: float = 120) -> Any:
    """Wait for something, and return it; fail with what was said."""
    begin = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - begin < seconds, said()[-3000:]
        time.sleep(0.1)
    return value


def finished(folder: Path, seconds: float = 120) -> dict[str, Any]:
    """The summary, once there is one."""
    path = folder / "summary.json"
    wait_until(path.exists, lambda: log_of(folder), seconds)
    return json.loads(path.read_text())


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a step is recorded."""
    path = folder / "metrics.jsonl"
    there = f'"step": {step},'
    wait_until(lambda: path.exists() and there in path.read_text(), lambda: log_of(folder))


def processes(**variables: object) -> Iterator[tuple[int, list[str]]]:
    """Processes that have these environment variables, and their words."""
    required = {f"{name}={value}".encode() for name, value in variables.items()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment_of_process = set((folder / "environ").read_bytes().split(b"\0"))
            argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if required <= environment_of_process:
            yield int(folder.name), argv


def task(jobs: Path, **variables: object) -> int:
    """The process of a task that submitit started from a folder of jobs."""
    required = {"submitit.core._submit", str(jobs)}
    pids = [
        pid
        for pid, argv in processes(**variables)
        if argv[0] == sys.executable and required <= set(argv)  # not srun, which has them too
    ]
    assert len(pids) == 1
    return pids[0]


def equal(one: Path, other: Path) -> None:
    """The same weights and losses to the last bit."""
    whole = weights(one)
    assert all(torch.equal(value, whole[key]) for key, value in weights(other).items())
    assert metrics(one, "train/loss") == metrics(other, "train/loss")
