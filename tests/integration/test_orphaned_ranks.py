"""Ranks whose torchrun was killed."""

import os
import socket
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
while not stop.received and time.monotonic() - begin < float(sys.argv[2]):
    time.sleep(0.01)
(folder / f"stopped-{stop.received}").touch()
"""
# The first of two ranks, whose store does not answer.
CONNECTING = """
import sys
from pathlib import Path
from pipeline.config import RuntimeConfig
from pipeline.runtime.distributed import distributed_session
(Path(sys.argv[1]) / "started").touch()
with distributed_session(RuntimeConfig(device="cpu", connect_timeout=600)):
    pass
"""
AGENT = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, *sys.argv[1:]])
while not Path(sys.argv[3], "started").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("under_torchrun", [True, False])
def test_a_rank_stops_when_its_torchrun_is_gone(tmp_path: Path, under_torchrun: bool) -> None:
    """Any other parent may end: a shell in the background, for example."""
    variables = {name: v for name, v in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    variables |= {"TORCHELASTIC_RUN_ID": "1"} if under_torchrun else {}
    seconds = "20" if under_torchrun else "2"
    argv = [sys.executable, "-c", AGENT, "-c", WORKER, str(tmp_path), seconds]
    subprocess.run(argv, env=variables | {"PYTHONPATH": str(ROOT)}, check=True)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("stopped-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / f"stopped-{under_torchrun}").exists()


def test_a_rank_that_connects_ends_when_its_torchrun_is_gone(tmp_path: Path) -> None:
    with socket.socket() as unused:  # it is bound, and does not listen
        unused.bind(("127.0.0.1", 0))
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused.getsockname()[1])}
        torchrun = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        rank = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env = os.environ | store | torchrun | rank | {"PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-c", AGENT, "-c", CONNECTING, str(tmp_path)]
        # It returns when the rank has ended too, which has the same standard error.
        done = subprocess.run(argv, env=env, stderr=subprocess.PIPE, text=True, timeout=100)
    assert "error: torchrun has ended before its ranks were connected" in done.stderr
