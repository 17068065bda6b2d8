"""Entry points in this process: an import of torch and DALI is saved."""

import subprocess

from pipeline.runtime import lock, signals
from tests.unit.mistakes.case import call


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
