"""Running entry points in this process, which saves importing torch and DALI."""

import subprocess

from pipeline.runtime import lock, signals
from tests.unit.mistakes.case import call


def in_process(script: str, *options: object, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """Like the fixture ``run``, but in this process and for one rank."""
    assert not ranks, "ranks are processes"
    try:
        ended = call(script, *options)
    finally:  # the end of a process does the same
        while lock._held:
            lock._held.pop().close()
        signals._received.clear()
    return subprocess.CompletedProcess([script], ended.code, ended.stdout, ended.stderr)


def succeed(script: str, *options: object) -> str:
    """Run in this process, check that there is no error, and return the output."""
    done = in_process(script, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout
