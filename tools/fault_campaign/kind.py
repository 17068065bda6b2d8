"""What a kind of fault is: `Kind`, and the run that it disturbs: `Target`."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fault_campaign import slurm
from fault_campaign.commands import Command

START, WORK, WRITE = PHASES = ("start-up", "work", "writing")  # of a run; see `Fault.phase`


@dataclass(frozen=True)
class Target:
    """A running command at the moment of the fault.

    Attributes:
        launcher: the process of the command itself.
        ranks: the ranks, by number; at least one for faults of processes.
        rank: the rank that the fault is for.
        folder: the output folder.
        draw: a random number in [0, 1).
        largest_file: bytes of the largest file of the undisturbed run.
        job: number of the job of SLURM that runs; empty if the command submits none.
        argv: the words of the command.
    """

    launcher: psutil.Process
    ranks: list[psutil.Process]
    rank: int
    folder: Path
    draw: float
    largest_file: int
    job: str
    argv: tuple[str, ...]

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
        by_name: whether it is drawn only if --kinds names it, since it also disturbs others.
        continues: whether the command continues, without a new start by the tool.
    """

    name: str
    text: str
    inject: Callable[[Target], str]
    phases: tuple[str, ...] = PHASES
    damage: Callable[[Path, float], str] | None = None
    wrapper: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    by_name: bool = False
    continues: bool = False

    @property
    def on_job(self) -> bool:
        """Whether it disturbs a job of SLURM; others disturb processes on this machine."""
        return "job" in self.needs

    def by_default(self, command: Command) -> bool:
        """Whether it is drawn if --kinds names none: faults of jobs for a command that submits
        some, since these may run on other machines, and faults of processes for others."""
        return not self.by_name and self.on_job == command.submits

    def missing(self, command: Command) -> str:
        """Why the kind cannot be tried with this command on this machine; empty if it can."""
        return next((reason for need in self.needs if (reason := _LACKS[need](command))), "")


def _no_namespaces(_: Command) -> str:
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs the programs {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "this machine allows no namespaces" if done.returncode else ""


def _no_job(command: Command) -> str:
    return slurm.missing_programs() if command.submits else "the command submits no job"


def _no_urgent(command: Command) -> str:
    partition = slurm.urgent_partition(command.argv)
    return "" if partition else "no partition's jobs preempt those of the command"


# Why a command or this machine lacks what a kind needs; empty if it does not.
_LACKS: dict[str, Callable[[Command], str]] = {
    "torchrun": lambda c: "" if c.under_torchrun else "the command is not run by torchrun",
    "ranks": lambda c: "" if c.num_ranks > 1 else "the command has one rank",
    "finetune": lambda c: "" if c.trains else "an evaluation has no checkpoints",
    "namespaces": _no_namespaces,
    "job": _no_job,
    "urgent": _no_urgent,
    "root": lambda _: "needs root" if os.geteuid() else "",
}
