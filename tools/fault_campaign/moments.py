"""Waiting for the moment of a fault."""

import time

import psutil

from fault_campaign import files
from fault_campaign.attempts import Attempt
from fault_campaign.kinds import START, WRITE
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault

_POLL_SECONDS = 0.02
_WRITE_POLL_SECONDS = 0.002  # a checkpoint of the demonstration takes longer to write
_LAST_WRITE = 0.9  # of the rows; after it a file is written for certain, at the end


def wait_for(
    fault: Fault, attempt: Attempt, pace: Pace, num_ranks: int, after_checkpoint: bool
) -> list[psutil.Process]:
    """Wait for the moment of a fault.

    Args:
        fault: the plan.
        attempt: the command that runs.
        pace: of the undisturbed run.
        num_ranks: ranks of the command; the fault does not come before all have started.
        after_checkpoint: it does not come before there is a checkpoint either.

    Returns:
        The ranks of the command; empty if it ended before, or its time limit passed.
    """
    if fault.phase == START:
        _sleep_until(attempt, fault.fraction * pace.start_seconds)
    else:
        share = fault.fraction * (_LAST_WRITE if fault.phase == WRITE else 1)
        while attempt.in_time and files.num_rows(attempt.folder) < max(share * pace.num_rows, 1):
            time.sleep(_POLL_SECONDS)
    while after_checkpoint and attempt.in_time and not files.numbered_checkpoints(attempt.folder):
        time.sleep(_POLL_SECONDS)
    ranks = attempt.ranks()
    while attempt.in_time and len(ranks) < num_ranks:  # torchrun has not started them yet
        time.sleep(0.01)
        ranks = attempt.ranks()
    if fault.phase == WRITE:
        while attempt.in_time and not files.written_files(attempt.folder):
            time.sleep(_WRITE_POLL_SECONDS)
    return ranks if attempt.in_time else []


def _sleep_until(attempt: Attempt, seconds: float) -> None:
    while attempt.in_time and attempt.seconds < seconds:
        time.sleep(_POLL_SECONDS)
