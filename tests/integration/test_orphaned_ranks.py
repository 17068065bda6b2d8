"""Ranks whose torchrun was killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT

WORKER = """
import sys, time
from pathlib import Path
from pipeline.runtime.signals import StopRequest
stop, folder = StopRequest(), Path(sys.argv[1])
assert not stop.received
(folder / "started").touch()
begin = time.monotonic()
while not stop.received and time.monotonic() - begin < 2:
    time.sleep(0.01)
(folder / f"stopped-{stop.received}").touch()
"""
AGENT = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, *sys.argv[1:]])
while not Path(sys.argv[-1], "started").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("under_torchrun", [True, False])
def test_a_rank_stops_when_its_torchrun_is_gone(tmp_path: Path, under_torchrun: bool) -> None:
    """Any other parent may end: a shell in the background, for example."""
    variables = {name: v for name, v in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    variables |= {"TORCHELASTIC_RUN_ID": "1"} if under_torchrun else {}
    argv = [sys.executable, "-c", AGENT, "-c", WORKER, str(tmp_path)]
    subprocess.run(argv, env=variables | {"PYTHONPATH": str(ROOT)}, check=True)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("stopped-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / f"stopped-{under_torchrun}").exists()
