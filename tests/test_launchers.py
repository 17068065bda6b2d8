"""Launchers on this machine, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest

from launchers.options import minutes, split
from tests.runs import Run, expect_error
from tests.slurm import (
    PLAIN,
    SCRIPT,
)


@pytest.mark.parametrize(("where", "ranks"), [("local", 2), ("debug", 1)])
def test_on_this_machine(run: Run, tmp_path: Path, where: str, ranks: int) -> None:
    folder = tmp_path / "a run"
    options = (*PLAIN, "--train.clean_epochs", 1, "--train.epochs", 1, "--output", folder)
    done = run(SCRIPT, "--cluster", where, "--tasks-per-node", ranks, "--wait", "--", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["ranks"] == ranks
    assert "rho2, relative" in done.stdout
    if where == "local":
        broken = (*options, "--output", tmp_path / "x", "--model.name", "tests.nets:exploding")
        done = run(SCRIPT, "--cluster", where, "--wait", "--", *broken)
        assert done.returncode == 2
        assert "not finite" in done.stdout  # the run's log
        assert done.stderr.splitlines()[-1].startswith("error: job ")


def test_words_after_two_dashes_are_the_runs() -> None:
    assert split(["--nodes", "2", "--", "--a", "--", "b"]) == (["--nodes", "2"], ["--a", "--", "b"])
    assert split(["--nodes", "2"]) == (["--nodes", "2"], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 90), ("24h", 1440), ("2d", 2880), ("30", 30), ("2:30:00", 150), ("1-12:00:01", 2161)],
)
def test_times(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_mistakes_are_refused_before_submission(run: Run, tmp_path: Path) -> None:
    cases = [
        (("--time", "soon"), (), "is no time"),
        (("--cluster", "local", "--nodes", 2), (), "--nodes 2 needs --cluster slurm"),
        (("--tasks-per-node", 3), ("--train.batch_size", 100), "not divisible by 3 ranks"),
        ((), ("--optim.lrr", 3), "optim.lrr"),
        ((), ("--data.train", "no.parquet"), "data.train: no file no.parquet"),
    ]
    for mine, theirs, words in cases:
        done = run(SCRIPT, *mine, "--", "--output", tmp_path / "x", *theirs)
        assert done.returncode == 2
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "x").exists()
    if shutil.which("sbatch") is None:
        line = expect_error(run, "--", "--output", tmp_path / "x", script=SCRIPT)
        assert "use --cluster local" in line
