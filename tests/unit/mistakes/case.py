"""One mistake, and running a command inside this process."""

import contextlib
import io
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from tests.helpers.runs import ROOT

FINETUNE, EVALUATE = "pipeline/finetune.py", "pipeline/evaluate.py"


class Case(NamedTuple):
    """A mistake of a user, with the expected line and exit code."""

    number: str  # unique; number of a finding, or a name for the mistake
    argv: Callable[[Path], Sequence[object]]  # writes files to an empty folder; returns the command
    line: str  # regular expression that the output must contain
    code: int = 2


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def call(script: str, *options: object) -> CommandResult:
    """Run an entry point or a tool in this process, like `python SCRIPT OPTIONS`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    saved_argv, path, folder = sys.argv, list(sys.path), Path.cwd()
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
        sys.argv, sys.path[:] = saved_argv, path
        os.chdir(folder)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if dist.is_initialized():
            dist.destroy_process_group()
    return CommandResult(code, stdout.getvalue(), stderr.getvalue())
