"""Waiting for the moment of a fault."""

import math
import time
from collections.abc import Callable

from fault_campaign import files
from fault_campaign.attempts import Attempt
from fault_campaign.kind import START, WRITE
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault

_POLL_SECONDS = 0.02
_WRITE_POLL_SECONDS = 0.002  # a checkpoint of the demonstration takes longer to write
_LAST_WRITE = 0.9  # of the rows; after it a file is written for certain, at the end


def wait_for(fault: Fault, attempt: Attempt, pace: Pace, is_ready: Callable[[], bool]) -> bool:
    """Wait for the moment of a fault.

    Args:
        fault: the plan.
        attempt: the command that runs.
        pace: of the undisturbed run.
        is_ready: whether the run has what the fault needs, such as all ranks; it is asked when the
            moment has come, until it is true.

    Returns:
        Whether the moment came; False: the command ended before, or its time limit passed.
    """
    if fault.phase == START:
        _sleep_until(attempt, fault.fraction * pace.start_seconds)
    else:
        share = fault.fraction * (_LAST_WRITE if fault.phase == WRITE else 1)
        attempt.wait_for_row(0)
        attempt.wait_for_row(math.ceil(share * pace.num_rows) - 1)
    while attempt.in_time and not is_ready():
        time.sleep(_POLL_SECONDS)
    if fault.phase == WRITE:
        while attempt.in_time and not files.written_files(attempt.folder):
            time.sleep(_WRITE_POLL_SECONDS)
    return attempt.in_time


def _sleep_until(attempt: Attempt, seconds: float) -> None:
    while attempt.in_time and attempt.seconds < seconds:
        time.sleep(_POLL_SECONDS)
