"""Runs of pipeline/finetune.py in processes of their own."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_checks.check import ROOT, Setup

FINETUNE = ROOT / "pipeline" / "finetune.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
_SHOWN = 2000  # characters of a process's output in an error


class ProcessFailed(Exception):
    """A process ended with an unexpected exit code, or did not end."""


@dataclass(frozen=True)
class Started:
    """A process, with a file for its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float, expected: int | None = 0) -> str:
        """Wait for its end; returns its output.

        Args:
            seconds: time after which the process is killed.
            expected: exit code; None: any.

        Raises:
            ProcessFailed: it has another exit code, or did not end.
        """
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"no end within {seconds:g} s: {self.output[-_SHOWN:]}") from None
        if expected is not None and code != expected:
            raise ProcessFailed(f"exit code {code}, not {expected}: {self.output[-_SHOWN:]}")
        return self.output

    @property
    def output(self) -> str:
        """What the process has printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End the process and all that it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # torchrun then ends its workers
            try:
                self.process.wait(timeout=40)  # torchrun gives its workers 30 s
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def start(log: Path, *arguments: object, **variables: str) -> Started:
    """Start Python with these arguments and environment variables, in a session of its own."""
    paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun would set it with a long warning
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    started = Started(process, log)
    atexit.register(started.kill)  # after Ctrl-C nothing is left running
    return started


def run_options(setup: Setup, folder: Path, *more: str) -> tuple[str, ...]:
    """Options of a short run of the embedded demonstration."""
    device = ["--runtime.device", setup.device.type]
    if setup.on_gpu:  # so that a run can be compared with its repetition
        device += ["--runtime.deterministic", "true"]
    return (*device, *setup.size.run_options, "--output", str(folder), *more)


def wait_for_step(started: Started, folder: Path, step: int, seconds: float) -> None:
    """Wait until a run has recorded a step.

    Raises:
        ProcessFailed: the run ended before, or did not get there in time.
    """
    path, deadline = folder / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        if started.process.poll() is not None:
            raise ProcessFailed(f"the run ended before step {step}: {started.output[-_SHOWN:]}")
        time.sleep(0.005)
    started.kill()
    raise ProcessFailed(f"no step {step} within {seconds:g} s: {started.output[-_SHOWN:]}")


def metrics(folder: Path, name: str) -> list[float]:
    """The values of one metric of a run, in the order of the steps."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row[name] for row in rows if name in row]


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a finished run."""
    return torch.load(folder / "weights.pth", weights_only=True, map_location="cpu")
