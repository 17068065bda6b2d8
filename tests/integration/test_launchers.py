"""Launchers on this machine, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.options import grid, name_of, parse_minutes, split
from pipeline.errors import UserError
from pipeline.runtime import machine
from tests.helpers.in_process import call
from tests.helpers.runs import ROOT, Run, expect_error
from tests.helpers.slurm import PLAIN, SCRIPT, log_of, wait_for_step, wait_until

CHAIN, JOBS = "launchers/chain.py", "launchers/jobs.py"
# 6 steps
SHORT = (*PLAIN, "--train.batch_size", 1000, "--train.pretrain_epochs", 0)


@pytest.mark.parametrize("name", ["finetune", "evaluate"])
def test_a_batch_script_outside_of_slurm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    argv = ["bash", ROOT / "slurm" / f"{name}.sbatch"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this script must run as a SLURM job; submit it with: sbatch")
    assert f"slurm/{name}.sbatch" in line


def test_sbatch_without_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: fetch_config failed\n"
            "sbatch: fatal: Could not establish a configuration source' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ended = call(SCRIPT, "--", *PLAIN, "--output", tmp_path / "run")
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert "cannot connect to SLURM's controller" in line
    assert "--cluster local" in line


@pytest.mark.slow
@pytest.mark.parametrize(("where", "ranks"), [("local", 2), ("debug", 1)])
def test_on_this_machine(run: Run, tmp_path: Path, where: str, ranks: int) -> None:
    folder = tmp_path / "a run"
    argv = ("--cluster", where, "--tasks-per-node", ranks, "--wait")
    done = run(SCRIPT, *argv, "--", *SHORT, "--output", folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ranks"] == ranks
    assert summary["versions"].get("commit", "") == machine.commit()  # of the copied code
    assert "rho2, relative" in done.stdout


@pytest.mark.slow
def test_a_run_that_fails_on_this_machine(run: Run, tmp_path: Path) -> None:
    options = (*SHORT, "--output", tmp_path, "--model.name", "tests.helpers.nets:exploding")
    done = run(SCRIPT, "--cluster", "local", "--wait", "--", *options)
    assert done.returncode == 2
    assert "not finite" in done.stdout  # the run's log
    assert done.stderr.splitlines()[-1].startswith("error: job ")


@pytest.mark.slow
def test_watched_and_cancelled_on_this_machine(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    slower = ("--train.pretrain_epochs", 0, "--model.name", "tests.helpers.nets:slower_mlp")
    argv = ("--cluster", "local", "--", *PLAIN, *slower, "--output", folder)
    done = run(SCRIPT, *argv)
    assert done.returncode == 0, done.stderr
    wait_for_step(folder, 2)  # those with Deep Defense take a second each
    shown = call(JOBS, tmp_path).stdout.splitlines()
    assert len(shown) == 2
    assert re.search(r"RUNNING .* training \d+/15 .* 0:00:\d\d", shown[1])
    refused = call(SCRIPT, *argv)
    assert refused.code == 2
    assert "(RUNNING) writes to" in refused.stderr
    assert "jobs.py cancel" in refused.stderr
    assert call(JOBS, "cancel", tmp_path).stdout.startswith("cancelled job ")
    wait_until(lambda: "interrupted after step" in log_of(folder), lambda: log_of(folder))
    wait_until(lambda: "ENDED" in call(JOBS, tmp_path).stdout, lambda: log_of(folder))
    assert "interrupted after step" in run(JOBS, "logs", folder).stdout
    assert call(JOBS, "cancel", tmp_path).stdout == ""
    assert "no runs" in expect_error(run, tmp_path / "elsewhere", script=JOBS)


@pytest.mark.slow
def test_an_evaluation_of_another_net_is_refused(run: Run, tmp_path: Path) -> None:
    options = ("--evaluation.num_images", 20, "--output", tmp_path)
    argv = ("--cluster", "local", "--shards", 2, "--wait", "--")
    script = "launchers/evaluate.py"
    done = run(script, *argv, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["num_samples"] == 20
    assert "all images are done" in call(script, *argv, *options).stdout
    cases = [
        (
            ("--model.name", "lenet"),
            "results of another evaluation (this one -> that one: model: lenet -> mlp",
        ),
        (("--evaluation.fgs.reference", tmp_path / "no"), "holds no eps_ref"),
    ]
    for more, said in cases:
        ended = call(script, *argv, *options, *more)
        assert ended.code == 2
        assert said in ended.stderr


@pytest.mark.slow
def test_a_chain_on_this_machine(run: Run, tmp_path: Path) -> None:
    argv = ("--cluster", "local", "--", *SHORT, "--output", tmp_path)
    done = run(CHAIN, *argv, "--", "--evaluation.num_images", 60)
    assert done.returncode == 0, done.stderr
    for name in ("before", "after"):
        assert json.loads((tmp_path / name / "summary.json").read_text())["num_samples"] == 60
    assert (tmp_path / "report" / "report.md").read_text().count("Deep Defense") == 1
    listed = call(JOBS, tmp_path).stdout.splitlines()[1:]
    assert [line.split()[2] for line in listed] == ["COMPLETED"] * 3


def test_chains_are_checked_before_submission(run: Run, tmp_path: Path) -> None:
    cases = [
        (("--", "--output", tmp_path / "x", "--", "--optim.lr", 3), "optim.lr"),
        (("--", "--output", tmp_path / "x", "--", "--shard", "0/3"), "--shards before --"),
    ]
    for argv, said in cases:
        ended = call(CHAIN, *argv)
        assert ended.code == 2
        assert said in ended.stderr.splitlines()[-1]
    ended = call(CHAIN, "--", "--output", tmp_path / "x", "--dry_run", "true")
    assert "fine-tuning, 8 shards for each of before, after, report" in ended.stdout
    assert not (tmp_path / "x").exists()
    assert "optim.lrr" in expect_error(run, "--", "--optim.lrr", 3, script=CHAIN)


def test_a_sweep_is_all_combinations() -> None:
    points = grid([["regularizer.c", "5", "10"], ["--data.root", "a/b"]])
    assert points == [
        (("regularizer.c", "5"), ("data.root", "a/b")),
        (("regularizer.c", "10"), ("data.root", "a/b")),
    ]
    assert [name_of(point) for point in points] == ["c=5,root=a-b", "c=10,root=a-b"]
    assert grid([]) == [()]
    with pytest.raises(UserError, match="needs values"):
        grid([["regularizer.c"]])
    with pytest.raises(UserError, match="2 runs would be named c=5"):
        grid([["regularizer.c", "5", "5"]])


def test_arguments_after_two_dashes_belong_to_the_run() -> None:
    assert split(["--nodes", "2", "--", "--a", "--", "b"]) == (["--nodes", "2"], ["--a", "--", "b"])
    assert split(["--nodes", "2"]) == (["--nodes", "2"], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 90), ("24h", 1440), ("2d", 2880), ("30", 30), ("2:30:00", 150), ("1-12:00:01", 2161)],
)
def test_times(text: str, expected: int) -> None:
    assert parse_minutes(text) == expected


def test_mistakes_are_refused_before_submission(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        (("--time", "soon"), (), "is not a time"),
        (("--cluster", "local", "--nodes", 2), (), "--nodes 2 needs --cluster slurm"),
        (("--tasks-per-node", 3), ("--train.batch_size", 100), "not divisible by 3 ranks"),
        ((), ("--optim.lrr", 3), "optim.lrr"),
        ((), ("--data.train", "no.parquet"), f"data.train: no file {Path.cwd()}/no.parquet"),
    ]
    for launcher_argv, run_argv, message in cases:
        ended = call(SCRIPT, *launcher_argv, "--", "--output", tmp_path / "x", *run_argv)
        assert ended.code == 2
        assert message in ended.stderr.splitlines()[-1], ended.stderr
        assert not (tmp_path / "x").exists()
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    line = expect_error(run, "--", "--output", tmp_path / "x", script=SCRIPT)
    assert "this machine has no sbatch" in line
    assert "use --cluster local" in line
    assert not (tmp_path / "x").exists()
