"""What faults do to a job of SLURM.

All of them return when the job has been interrupted and runs again or has ended, or when SLURM has
not interrupted it in time.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fault_campaign import slurm
from fault_campaign.kind import Target
from fault_campaign.refused import FaultRefusedError
from pipeline.errors import warn

NOT_INTERRUPTED = "; the job was not interrupted"
NODE_DOWN = "node_down"  # a file with the name of a node that is down because of a fault
_OF_OTHERS = ("DOWN", "DRAIN", "FAIL", "MAINT", "RESERVED", "POWER")  # states with a reason


def requeue(target: Target) -> str:
    """Requeue the job, as an administrator does before maintenance."""
    return _restart(target, lambda job: _command(f"job {job} requeued", "scontrol", "requeue", job))


def cancel(target: Target) -> str:
    """Cancel the job."""
    return _restart(target, lambda job: _command(f"job {job} cancelled", "scancel", job))


def warn_job(target: Target) -> str:
    """Send the signal that SLURM sends before a time limit.

    A batch script of sbatch gets it itself (slurm/finetune.sbatch); with submitit the tasks do.
    """

    def send(job: str) -> str:
        script = slurm.first_record(job).get("Command", "")
        to_script = ("--batch",) if script.endswith(".sbatch") else ()
        return _command(f"signal USR2 to job {job}", "scancel", *to_script, "--signal=USR2", job)

    return _restart(target, send)


def preempt(target: Target) -> str:
    """A job of one second and higher priority takes the nodes; it is cancelled if it still waits
    when the other one runs again."""
    partition = slurm.urgent_partition(target.argv)
    with ExitStack() as afterwards:

        def submit(job: str) -> str:
            nodes = slurm.first_record(job)["NodeList"]
            where = ("--partition", partition, "--nodelist", nodes, "--exclusive", "--time", "1")
            other = slurm.command(
                *("sbatch", "--parsable", *where, "--output", os.devnull, "--wrap", "sleep 1")
            )
            afterwards.callback(slurm.ask, "scancel", other.strip().partition(";")[0])
            return f"a job in the partition {partition} on {nodes}"

        return _restart(target, submit)


def lose_node(target: Target) -> str:
    """A node is marked as down until the job has left it."""
    note = target.folder.parent / NODE_DOWN
    with ExitStack() as until_interrupted:

        def take_down(job: str) -> str:
            nodes = slurm.command(
                *("scontrol", "show", "hostnames", slurm.first_record(job)["NodeList"])
            ).split()
            node = nodes[int(target.draw * len(nodes))]
            _check_node(node)
            note.write_text(node)
            until_interrupted.callback(bring_node_back, note)
            update = ("update", f"nodename={node}", "state=down", "reason=fault")
            return _command(f"node {node} down", "scontrol", *update)

        text = _interrupt(target, take_down)
    slurm.wait_for_restart(target.job)  # it needs the node
    return text


def bring_node_back(note: Path) -> None:
    """Let SLURM use the node again whose name is in this file, and remove the file."""
    node = note.read_text()
    try:
        if "DOWN" in _state_of(node):  # it may have come back by itself (ReturnToService)
            slurm.command("scontrol", "update", f"nodename={node}", "state=resume")
    except FaultRefusedError as error:
        warn(f"node {node} is still down ({error}): scontrol update nodename={node} state=resume")
        return
    note.unlink()


def _check_node(node: str) -> None:
    """Refuse a node whose state somebody else has set: to resume it would undo that."""
    state = _state_of(node)
    if any(word in state for word in _OF_OTHERS):
        raise FaultRefusedError(f"node {node} is in the state {state}")


def _state_of(node: str) -> str:
    text = slurm.ask("scontrol", "--oneliner", "show", "node", node)
    return text.partition("State=")[2].split()[0]


def _command(text: str, *argv: str) -> str:
    slurm.command(*argv)
    return text


def _restart(target: Target, disturb: Callable[[str], str]) -> str:
    text = _interrupt(target, disturb)
    slurm.wait_for_restart(target.job)
    return text


def _interrupt(target: Target, disturb: Callable[[str], str]) -> str:
    record = slurm.first_record(target.job)
    if record.get("JobState") != "RUNNING":
        raise FaultRefusedError("the job does not run")
    text = disturb(target.job)
    interrupted = slurm.wait_for_interruption(target.job, record.get("Restarts", "0"))
    return text + ("" if interrupted else NOT_INTERRUPTED)
