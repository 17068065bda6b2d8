"""What faults do to a job of SLURM.

All of them return when the job has been interrupted and runs again or has ended, or when SLURM has
not interrupted it in time.
"""

from collections.abc import Callable
from contextlib import ExitStack

from fault_campaign import slurm
from fault_campaign.kind import Target

NOT_INTERRUPTED = "; the job was not interrupted"


def to_job(disturb: Callable[[str], str]) -> Callable[[Target], str]:
    """A fault that needs only the number of the job; ``disturb`` returns what was done."""
    return lambda target: _restart(target, disturb)


def preempt(target: Target) -> str:
    """A short job of higher priority takes the nodes."""
    partition = slurm.urgent_partition(target.argv)
    return _restart(target, lambda job: slurm.preempt(job, partition))


def lose_node(target: Target) -> str:
    """A node is marked as down until the job has left it."""
    with ExitStack() as until_interrupted:

        def take_down(job: str) -> str:
            text, node = slurm.take_node_down(job, target.draw)
            until_interrupted.callback(slurm.bring_node_back, node)
            return text

        text = _interrupt(target, take_down)
    slurm.wait_for_restart(target.job)  # it needs the node
    return text


def _restart(target: Target, disturb: Callable[[str], str]) -> str:
    text = _interrupt(target, disturb)
    slurm.wait_for_restart(target.job)
    return text


def _interrupt(target: Target, disturb: Callable[[str], str]) -> str:
    restarts = slurm.fields_of(target.job).get("Restarts", "0")
    text = disturb(target.job)
    interrupted = slurm.wait_for_interruption(target.job, restarts)
    return text + ("" if interrupted else NOT_INTERRUPTED)
