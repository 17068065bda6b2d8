"""Ranks that make mistakes, do not meet, die or wait."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.helpers.in_process import in_process
from tests.helpers.runs import (
    SMALL,
    Run,
    children,
    expect_error,
    start,
    wait_for,
)


def test_mistakes_on_two_ranks_are_said_once(run: Run) -> None:
    assert "optim.lrr" in expect_error(run, "--optim.lrr", 3, ranks=2)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_ranks(run: Run, tmp_path: Path) -> None:
    """A user's error after the ranks have joined."""
    options = (*SMALL, "--model.name", "tests.helpers.nets:exploding", "--output", tmp_path / "run")
    line = expect_error(run, *options, ranks=2)
    assert "not finite in step 1, for 500 images" in line
    assert ".png" in line  # ids
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_find_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in alone.items():
        monkeypatch.setenv(name, str(value))
    line = expect_error(in_process, "--output", tmp_path / "run", "--runtime.connect_timeout", 2)
    assert f"127.0.0.1:{port} for 2 s" in line
    assert f"rank {rank} of 2 on {socket.gethostname()}" in line


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, how: signal.Signals) -> None:
    options = ("--train.batch_size", 300, "--runtime.collective_timeout", 5)
    process = start(tmp_path / "run", *options, ranks=3, said=subprocess.PIPE)
    wait_for(process, tmp_path / "run", 3)
    victim = children(process.pid)[-1]
    rank = re.search(rb"\0RANK=(\d)", Path(f"/proc/{victim}/environ").read_bytes())[1].decode()
    os.kill(victim, how)
    errors = ""
    if how == signal.SIGSTOP:
        for line in process.stderr:
            errors += line
            if line.startswith("error: "):
                break
        os.kill(victim, signal.SIGKILL)  # torchrun would wait half a minute for it
    errors += process.communicate(timeout=120)[1]
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    named = (
        rf"; no answer from rank {rank} on {socket.gethostname()} \(last report \d+ s ago: .*\); "
    )
    named += r"others: step \d+, "
    assert any(re.search(named, line) for line in lines), errors
    assert all("lost the other ranks" in line for line in lines)
