"""tools/chaos.py: waiting for the moment of a fault."""

import sys
import uuid
from pathlib import Path

import pytest

from fault_campaign import moments
from fault_campaign.attempts import Attempt
from fault_campaign.kind import START, WORK, WRITE
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault

PACE = Pace(start_seconds=100.0, seconds=200.0, num_rows=1, largest_file=1000)
HANGING = ("-c", "import time; time.sleep(8)")


@pytest.mark.parametrize(
    ("phase", "files", "is_ready"),
    [
        (START, (), True),
        (WORK, (), True),
        (WORK, ("metrics.jsonl",), False),
        (WRITE, ("metrics.jsonl",), True),
    ],
    ids=["start", "first row", "ranks or checkpoint", "temporary file"],
)
def test_the_time_limit_applies_before_the_fault(
    tmp_path: Path, phase: str, files: tuple[str, ...], is_ready: bool
) -> None:
    """Whatever a run that hangs has not done yet."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in files:
        (run / name).write_text("{}\n")
    fault = Fault(1, "kill_rank", phase, fraction=0.5, rank_fraction=0.0, draw=0.0)
    argv, log = (sys.executable, *HANGING), tmp_path / "output.txt"
    attempt = Attempt(argv, run, uuid.uuid4().hex, log, time_limit=1.5)
    assert not moments.wait_for(fault, attempt, PACE, lambda: is_ready)
    assert attempt.running
    ended = attempt.wait()
    assert ended.timed_out
    assert ended.exit_code == -9
    assert ended.remaining == []
