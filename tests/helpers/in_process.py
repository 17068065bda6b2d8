"""Entry points in this process: an import of torch and DALI is saved."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from pipeline.runtime import lock, signals
from tests.helpers.runs import ROOT

FINETUNE, EVALUATE = "pipeline/finetune.py", "pipeline/evaluate.py"


class CommandResult(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def call(script: str, *options: object) -> CommandResult:
    """Run an entry point or a tool in this process, as `python SCRIPT OPTIONS` would."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv, path, folder = sys.argv, list(sys.path), Path.cwd()
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in caught}
    sys.argv = [str(ROOT / script), *map(str, options)]
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, sys.path[:] = argv, path
        os.chdir(folder)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if dist.is_initialized():
            dist.destroy_process_group()
    return CommandResult(code, stdout.getvalue(), stderr.getvalue())


def in_process(script: str, *options: object, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """As the fixture ``run``, for one rank and in this process."""
    assert not ranks, "ranks are processes"
    try:
        ended = call(script, *options)
    finally:  # as the end of a process would
        while lock._held:
            lock._held.pop().close()
        signals._received.clear()
    return subprocess.CompletedProcess([script], ended.code, ended.stdout, ended.stderr)


def succeed(script: str, *options: object) -> str:
    """Run in this process without an error; the output."""
    done = in_process(script, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout
