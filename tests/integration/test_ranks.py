"""Ranks that make mistakes, do not meet, die or wait."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.runs import (
    SCRIPT,
    SMALL,
    Run,
    children,
    command,
    environment,
    expect_error,
    start,
    wait_for,
)


def test_mistakes_on_two_ranks_are_said_once(run: Run, tmp_path: Path) -> None:
    line = expect_error(run, "--data.train", tmp_path / "no.parquet", ranks=2)
    assert "data.train: no file" in line
    line = expect_error(run, "--optim.lrr", 3, ranks=2)
    assert "optim.lrr" in line


def test_one_run_a_folder(run: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--train.epochs", 200, "--output", tmp_path / "run")
    process = subprocess.Popen(
        command(SCRIPT, *options), env=environment(), stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    line = expect_error(run, *options)
    assert f"is being written by process {process.pid} on " in line
    process.kill()
    process.wait()
    done = run(SCRIPT, *SMALL, "--train.epochs", 200, "--output", tmp_path / "run", "--dry_run", 1)
    assert "another process" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_find_one_another(run: Run, tmp_path: Path, rank: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begin = time.monotonic()
    done = subprocess.run(
        command(SCRIPT, "--output", tmp_path / "run", "--runtime.connect_timeout", 2),
        env=environment() | {name: str(value) for name, value in alone.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"127.0.0.1:{port} for 2 s" in lines[0]
    assert f"rank {rank} of 2 on {socket.gethostname()}" in lines[0]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begin < 40


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "run"
    options = ("--train.batch_size", 300, "--runtime.collective_timeout", 5)
    process = start(folder, *options, ranks=3, said=subprocess.PIPE)
    wait_for(process, folder, 3)
    victim = children(process.pid)[-1]
    rank = re.search(rb"\0RANK=(\d)", Path(f"/proc/{victim}/environ").read_bytes())[1].decode()
    begin = time.monotonic()
    os.kill(victim, how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    if how == signal.SIGSTOP:
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert any(f"rank {rank} on {socket.gethostname()}" in line for line in lines), errors
        assert all("lost the others" in line for line in lines)
    assert time.monotonic() - begin < 60
