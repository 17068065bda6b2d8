"""What tests of runs share: small runs, what they leave behind, their processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "pipeline/finetune.py"
SMALL = (
    *("--model.name", "tests.helpers.nets:dropout_mlp", "--train.batch_size", 500),
    *("--train.pretrain_epochs", 2, "--train.epochs", 2, "--checkpoint.every_steps", 5),
    *("--log.every_steps", 1, "--evaluation.num_images", 40, "--evaluation.every_epochs", 1),
    *("--log.panel_images", 2),
)  # 12 steps an epoch, 48 in all

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(script: str, *options: object, ranks: int = 0) -> list[str]:
    """The command line of an entry point; with ``ranks`` under torchrun."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, str(ROOT / script), *map(str, options)]


def environment() -> dict[str, str]:
    """For processes of their own: they do not use the process of W&B that this one has started."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pth", weights_only=True)


def assert_same_weights(folder: Path, other: Path) -> None:
    """Two runs ended with the same weights, to the last bit."""
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def metrics(folder: Path, name: str) -> dict[int, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [(line["step"], line[name]) for line in lines if name in line]
    assert len(values) == len(dict(values)), "a step was recorded twice"
    return dict(values)


def unused_pid() -> int:
    """A number that no process has."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1


def children(pid: int) -> list[int]:
    """Processes started by one."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if int(parent) == pid:
            pids.append(int(path.parent.name))
    return pids


def kill_all(process: subprocess.Popen[str]) -> None:
    """kill -9 a process and those it started.

    torchrun gives its workers sessions of their own: they would live on as orphans.
    """
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def start(
    folder: Path, *options: object, ranks: int = 0, said: int = subprocess.DEVNULL, **variables: str
) -> subprocess.Popen[str]:
    """A small run in the background; with ``said`` a pipe, for what it says."""
    return subprocess.Popen(
        command(SCRIPT, *SMALL, "--output", folder, *options, ranks=ranks),
        env=environment() | variables,
        stdout=said,
        stderr=said,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until the run has recorded a step."""
    deadline = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run ended too soon"


def expect_error(run: Run, *options: object, ranks: int = 0, script: str = SCRIPT) -> str:
    """Run, expect one clear line, and give it."""
    done = run(script, *options, ranks=ranks)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    if not ranks:  # torchrun adds a report of its own
        assert done.returncode == 2
        assert "Traceback" not in done.stderr, done.stderr
    return lines[0]
