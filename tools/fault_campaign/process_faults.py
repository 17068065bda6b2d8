"""What faults do to the processes of a run, or to its output folder."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from fault_campaign.kind import Target
from fault_campaign.processes import handles
from fault_campaign.refused import FaultRefusedError

PAUSE_SECONDS = 5.0
_SMALLEST_LIMIT = 1000  # bytes
_BUSY_SECONDS = 5.0  # a folder cannot become read-only while a file in it is open for writing
_NSENTER = {"mnt": "mount", "net": "net"}  # options of nsenter, by names of namespaces


def to_rank(number: signal.Signals) -> Callable[[Target], str]:
    """A signal to one rank."""

    def inject(target: Target) -> str:
        target.process.send_signal(number)
        return f"{number.name} to rank {target.rank}"

    return inject


def to_all(number: signal.Signals) -> Callable[[Target], str]:
    """A signal to the command and all ranks."""

    def inject(target: Target) -> str:
        for process in (target.launcher, *target.ranks):
            _send(process, number)
        return f"{number.name} to the command and its {len(target.ranks)} rank(s)"

    return inject


def to_launcher(number: signal.Signals) -> Callable[[Target], str]:
    """A signal to the command itself."""

    def inject(target: Target) -> str:
        target.launcher.send_signal(number)
        return f"{number.name} to torchrun"

    return inject


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def pause(target: Target) -> str:
    """Stop a rank for up to `PAUSE_SECONDS`."""
    seconds = PAUSE_SECONDS * target.draw
    target.process.suspend()
    time.sleep(seconds)
    _send(target.process, signal.SIGCONT)
    return f"rank {target.rank} stopped for {seconds:.1f} s"


def hang(target: Target) -> str:
    """Stop a rank for good."""
    target.process.suspend()
    return f"rank {target.rank} stopped for good"


def by_hook(number: int, text: str) -> Callable[[Target], str]:
    """A fault inside the rank; at start-up once Python has loaded the hook."""

    def inject(target: Target) -> str:
        deadline = time.monotonic() + 10
        while not handles(target.process, number) and time.monotonic() < deadline:
            time.sleep(0.01)
        target.process.send_signal(number)
        return f"{text} in rank {target.rank}"

    return inject


def limit_files(target: Target) -> str:
    """Files cannot grow beyond a limit between 1 kB and the largest file of the run."""
    limit = round(_SMALLEST_LIMIT * (target.largest_file / _SMALLEST_LIMIT) ** target.draw)
    for process in target.ranks:
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    return f"files of all ranks limited to {limit} bytes"


def make_read_only(target: Target) -> str:
    """Mount the folder again, read-only, for the processes of the command alone."""
    folder = str(target.folder)
    _inside(target, "mnt", "mount", "--bind", folder, folder)
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            _inside(target, "mnt", "mount", "-o", "remount,bind,ro", folder)
            break
        except FaultRefusedError:  # a file is being written
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
    return "the output folder is read-only"


def cut_network(target: Target) -> str:
    """Take the loopback interface of the command's own network down."""
    _inside(target, "net", "ip", "link", "set", "lo", "down")
    return "the network between the ranks and torchrun is down"


def _inside(target: Target, namespace: str, *argv: str) -> None:
    """Run a program in a namespace of the command; never in that of this machine."""
    pid = target.launcher.pid
    own, other = (os.stat(f"/proc/{part}/ns/{namespace}").st_ino for part in ("self", pid))
    if own == other:
        raise FaultRefusedError("the command has no namespace of its own yet")
    inside = ("nsenter", "--target", str(pid), f"--{_NSENTER[namespace]}")
    done = subprocess.run([*inside, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FaultRefusedError(done.stderr.strip() or f"{argv[0]} failed")
