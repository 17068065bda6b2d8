"""The processes of a command, found by a mark in their environment.

torchrun gives its workers sessions of their own, and workers may outlive it. The mark is inherited
by all of them, also by tasks of SLURM on this machine.
"""

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import psutil

MARK = "FAULT_CAMPAIGN"
# Of torchrun, of srun, and of submitit on this machine: the number of the rank, and a variable that
# the launcher sets anew for its ranks, so that an equal number is not taken for an inherited one.
_RANK_VARIABLES = (
    ("RANK", "TORCHELASTIC_RUN_ID"),
    ("SLURM_PROCID", "SLURM_TASK_PID"),
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_JOB_ID"),
)
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def marked(mark: str) -> list[psutil.Process]:
    """The running processes with this mark, oldest first; not the caller."""
    processes = []
    for process in psutil.process_iter():
        if process.pid != os.getpid() and _variables(process).get(MARK) == mark:
            processes.append(process)
    return sorted(processes, key=lambda process: (process.create_time(), process.pid))


def ranks(processes: Sequence[psutil.Process], command_pid: int) -> list[psutil.Process]:
    """The ranks among the processes of a command, in the order of their numbers.

    Variables that the command itself inherited do not count: in a job of SLURM, torchrun has the
    number of a task. If torchrun has started ranks, its numbers count alone.

    Args:
        processes: as `marked` returns them.
        command_pid: the process of the command itself, which is the only rank if no process has a
            variable with the number of its rank.
    """
    variables = {process: _variables(process) for process in processes}
    command = [process for process in processes if process.pid == command_pid]
    inherited = variables[command[0]] if command else {}
    for names in _RANK_VARIABLES:
        by_rank: dict[int, psutil.Process] = {}
        for process in processes:  # a rank is older than the processes that it starts
            number = _rank(variables[process], inherited, names)
            if number is not None:
                by_rank.setdefault(number, process)
        if by_rank:
            return [by_rank[number] for number in sorted(by_rank)]
    return command


def handles(process: psutil.Process, number: int) -> bool:
    """Whether a process has a handler for a signal: others would end it."""
    try:
        with open(f"/proc/{process.pid}/status") as file:
            masks = dict(line.split(":", 1) for line in file)
    except OSError:
        return False
    return bool(int(masks["SigCgt"], 16) >> (number - 1) & 1)


def listening_ports(processes: Sequence[psutil.Process]) -> set[int]:
    """TCP ports on which the processes accept connections."""
    ports = set()
    for process in processes:
        try:
            connections = process.net_connections(kind="tcp")
        except _GONE:
            continue
        ports |= _listening(connections)
    return ports


def still_listening(ports: set[int]) -> set[int]:
    """Those of the ports on which some process of this machine accepts connections."""
    return ports & _listening(psutil.net_connections(kind="tcp"))


def wait_for_end(mark: str, seconds: float) -> list[psutil.Process]:
    """Wait until no process has the mark; returns those that remain after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        remaining = marked(mark)
        if not remaining or time.monotonic() > deadline:
            return remaining
        time.sleep(0.1)


def end_all(mark: str) -> None:
    """Kill all processes with the mark, also those that they start meanwhile."""
    while True:
        processes = marked(mark)
        if not processes:
            return
        for process in processes:
            try:
                process.kill()
            except _GONE:
                continue
        time.sleep(0.05)  # psutil.wait_procs would take exit codes from `subprocess`


def _listening(connections: Iterable[Any]) -> set[int]:
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def _variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (*_GONE, OSError):
        return {}


def _rank(
    variables: dict[str, str], inherited: dict[str, str], names: tuple[str, ...]
) -> int | None:
    """The number in the first of the variables; None if all of them are inherited."""
    if all(variables.get(name) == inherited.get(name) for name in names):
        return None
    text = variables.get(names[0], "")
    return int(text) if text.isdecimal() else None
