"""The kinds of faults: what they do to a running command, or to its files before it resumes."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fault_campaign import files
from fault_campaign.commands import Command
from fault_campaign.hook import sitecustomize as hook
from fault_campaign.processes import handles

START, WORK, WRITE = PHASES = ("start-up", "work", "writing")  # of a run; see `Fault.phase`
PAUSE_SECONDS = 5.0
_SMALLEST_LIMIT = 1000  # bytes


@dataclass(frozen=True)
class Target:
    """A running command at the moment of the fault.

    Attributes:
        launcher: the process of the command itself.
        ranks: the ranks, by number; at least one.
        rank: the rank that the fault is for.
        folder: the output folder.
        draw: a random number in [0, 1).
        largest_file: bytes of the largest file of the undisturbed run.
    """

    launcher: psutil.Process
    ranks: list[psutil.Process]
    rank: int
    folder: Path
    draw: float
    largest_file: int

    @property
    def process(self) -> psutil.Process:
        """The process of the rank that the fault is for."""
        return self.ranks[self.rank]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: for the option --kinds.
        text: what happens, for --help and for tables.
        inject: causes the fault; returns what exactly was done.
        phases: when it can happen.
        damage: changes the files of the ended run before it resumes; returns what was done.
        wrapper: words in front of the command that is to be disturbed.
        needs: what the command or the machine must have; see `missing`.
    """

    name: str
    text: str
    inject: Callable[[Target], str]
    phases: tuple[str, ...] = PHASES
    damage: Callable[[Path, float], str] | None = None
    wrapper: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self, command: Command) -> str:
        """Why the kind cannot be tried with this command on this machine; empty if it can."""
        reasons = {
            "torchrun": "" if command.under_torchrun else "the command is not run by torchrun",
            "ranks": "" if command.num_ranks > 1 else "the command has one rank",
            "finetune": "" if command.trains else "an evaluation has no checkpoints",
            "namespaces": _no_namespaces() if "namespaces" in self.needs else "",
        }
        return next((reasons[need] for need in self.needs if reasons[need]), "")


def _no_namespaces() -> str:
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs the programs {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "this machine allows no namespaces" if done.returncode else ""


def _to_rank(number: signal.Signals) -> Callable[[Target], str]:
    def inject(target: Target) -> str:
        target.process.send_signal(number)
        return f"{number.name} to rank {target.rank}"

    return inject


def _to_all(number: signal.Signals) -> Callable[[Target], str]:
    def inject(target: Target) -> str:
        for process in (target.launcher, *target.ranks):
            _send(process, number)
        return f"{number.name} to the command and its {len(target.ranks)} rank(s)"

    return inject


def _to_launcher(number: signal.Signals) -> Callable[[Target], str]:
    def inject(target: Target) -> str:
        target.launcher.send_signal(number)
        return f"{number.name} to torchrun"

    return inject


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _pause(target: Target) -> str:
    seconds = PAUSE_SECONDS * target.draw
    target.process.suspend()
    time.sleep(seconds)
    _send(target.process, signal.SIGCONT)
    return f"rank {target.rank} stopped for {seconds:.1f} s"


def _hang(target: Target) -> str:
    target.process.suspend()
    return f"rank {target.rank} stopped for good"


def _by_hook(number: int, text: str) -> Callable[[Target], str]:
    """A fault inside the rank; at start-up once Python has loaded the hook."""

    def inject(target: Target) -> str:
        deadline = time.monotonic() + 10
        while not handles(target.process, number) and time.monotonic() < deadline:
            time.sleep(0.01)
        target.process.send_signal(number)
        return f"{text} in rank {target.rank}"

    return inject


def _limit_files(target: Target) -> str:
    """Files cannot grow beyond a limit between 1 kB and the largest file of the run."""
    limit = round(_SMALLEST_LIMIT * (target.largest_file / _SMALLEST_LIMIT) ** target.draw)
    for process in target.ranks:
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    return f"files of all ranks limited to {limit} bytes"


def _make_read_only(target: Target) -> str:
    """Mount the folder again, read-only, for the processes of the command alone."""
    inside = ("nsenter", "--target", str(target.launcher.pid), "--mount")
    folder = str(target.folder)
    subprocess.run([*inside, "mount", "--bind", folder, folder], check=True)
    subprocess.run([*inside, "mount", "-o", "remount,bind,ro", folder], check=True)
    return "the output folder is read-only"


def _cut_network(target: Target) -> str:
    inside = ("nsenter", "--target", str(target.launcher.pid), "--net")
    subprocess.run([*inside, "ip", "link", "set", "lo", "down"], check=True)
    return "the network between the ranks and torchrun is down"


_OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_kill_all = _to_all(signal.SIGKILL)

KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill_rank", "SIGKILL to one rank", _to_rank(signal.SIGKILL)),
        Kind("terminate_rank", "SIGTERM to one rank", _to_rank(signal.SIGTERM)),
        Kind("interrupt_rank", "SIGINT to one rank", _to_rank(signal.SIGINT)),
        Kind("segmentation_fault", "SIGSEGV to one rank", _to_rank(signal.SIGSEGV)),
        Kind("abort", "SIGABRT to one rank", _to_rank(signal.SIGABRT)),
        Kind("kill_all", "SIGKILL to all processes", _kill_all),
        Kind("terminate_all", "SIGTERM to all processes", _to_all(signal.SIGTERM)),
        Kind(
            "kill_torchrun",
            "SIGKILL to torchrun",
            _to_launcher(signal.SIGKILL),
            needs=("torchrun",),
        ),
        Kind(
            "terminate_torchrun",
            "SIGTERM to torchrun",
            _to_launcher(signal.SIGTERM),
            needs=("torchrun",),
        ),
        Kind(
            "interrupt_torchrun",
            "SIGINT to torchrun",
            _to_launcher(signal.SIGINT),
            needs=("torchrun",),
        ),
        Kind("pause", f"SIGSTOP to one rank, SIGCONT within {PAUSE_SECONDS:g} s", _pause),
        Kind("hang", "SIGSTOP to one rank for good", _hang, needs=("ranks",)),
        Kind("exception", "an exception in one rank", _by_hook(hook.EXCEPTION_SIGNAL, "exception")),
        Kind(
            "lock_held",
            "the interpreter lock of one rank is held for good",
            _by_hook(hook.LOCK_SIGNAL, "interpreter lock held"),
            needs=("ranks",),
        ),
        Kind(
            "clock_jump",
            "the wall clock of one rank, as Python reads it, jumps three hours ahead",
            _by_hook(hook.CLOCK_SIGNAL, "clock three hours ahead"),
        ),
        Kind("disk_full", "files cannot grow beyond a limit", _limit_files, (START, WORK)),
        Kind(
            "read_only",
            "the output folder becomes read-only",
            _make_read_only,
            wrapper=_OWN_MOUNTS,
            needs=("namespaces",),
        ),
        Kind(
            "network_cut",
            "the network between the ranks is cut",
            _cut_network,
            wrapper=_OWN_NETWORK,
            needs=("torchrun", "ranks", "namespaces"),
        ),
        Kind(
            "torn_checkpoint",
            "SIGKILL to all processes; the newest checkpoint is cut short",
            _kill_all,
            (WORK,),
            files.cut_newest_checkpoint,
            needs=("finetune",),
        ),
        Kind(
            "flipped_bit",
            "SIGKILL to all processes; a bit of the newest checkpoint changes",
            _kill_all,
            (WORK,),
            files.flip_bit_of_newest_checkpoint,
            needs=("finetune",),
        ),
    )
}
