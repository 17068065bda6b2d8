"""launchers/ on a real SLURM of two nodes, and on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from launchers.options import minutes, split
from tests.conftest import ROOT, Run, command, environment
from tests.test_evaluate import same
from tests.test_finetune import SMALL, expect_error, metrics, weights

SCRIPT = "launchers/finetune.py"
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
PLAIN = (*SMALL, "--model.name", "mlp", "--train.batch_size", 400)  # 15 steps an epoch, 60 in all


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A SLURM of this module's own."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM; not found: {', '.join(missing) or 'root'}")
    script = ROOT / "tests" / "slurm-cluster.sh"
    # pytest's own folders are closed to others, which munged does not accept.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        subprocess.run([script, "up", f"{folder}/c"], check=True, stdout=subprocess.DEVNULL)
        os.environ["SLURM_CONF"] = f"{folder}/c/slurm.conf"
        yield
        subprocess.run([script, "down", f"{folder}/c"], check=True)
        del os.environ["SLURM_CONF"]


# What a user's own environment sets: the interpreter that has the packages, ranks without GPUs.
SBATCH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RANKS_PER_NODE": "2"}
SHARDS = SBATCH | {"SHARDS": "3", "RANKS_PER_NODE": "1"}


def slurm(*words: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(run: Run, folder: Path, *options: object, where: tuple = ()) -> str:
    """Submit a fine-tuning on two nodes with two tasks each; the job's id."""
    asked = where or ("--nodes", 2, "--tasks-per-node", 2, "--time", "5m", "--grace", 30)
    done = run(SCRIPT, *asked, "--", *PLAIN, "--output", folder, *options)
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {folder}/tensorboard" in done.stdout
    return json.loads((folder / "submission.json").read_text())["job"]


def finished(folder: Path, seconds: float = 120) -> dict:
    """The summary, once there is one."""
    begin = time.monotonic()
    while not (folder / "summary.json").exists():
        logs = "".join(p.read_text() for p in (folder / "jobs").glob("*.out"))
        assert time.monotonic() - begin < seconds, logs[-3000:]
        time.sleep(0.2)
    return json.loads((folder / "summary.json").read_text())


def until(condition: Callable[[], bool], logs: Path, seconds: float = 120) -> None:
    """Wait for something; fail with the logs."""
    begin = time.monotonic()
    while not condition():
        said = "".join(path.read_text() for path in logs.glob("*.txt"))
        assert time.monotonic() - begin < seconds, said[-3000:]
        time.sleep(0.2)


def at_step(folder: Path, step: int, seconds: float = 60) -> None:
    """Wait until a step is recorded."""
    path, begin = folder / "metrics.jsonl", time.monotonic()
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        logs = "".join(p.read_text() for p in (folder / "jobs").glob("*.out"))
        assert time.monotonic() - begin < seconds, logs[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run under torchrun, with four ranks on this machine."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    words = command("pipeline/finetune.py", *PLAIN, "--output", folder, ranks=4)
    subprocess.run(words, check=True, env=environment(), capture_output=True)
    return folder


def equal(one: Path, other: Path) -> None:
    whole = weights(one)
    assert all(torch.equal(value, whole[key]) for key, value in weights(other).items())
    losses = metrics(one, "train/loss"), metrics(other, "train/loss")
    assert losses[0] == losses[1]


@pytest.mark.slurm
def test_two_nodes_with_two_tasks(
    run: Run, cluster: None, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a run; $(touch nothing) 'quoted'"
    submit(run, folder)
    summary = finished(folder)
    assert summary["ranks"] == 4
    equal(undisturbed, folder)
    assert (folder / "code" / "pipeline" / "finetune.py").exists()


@pytest.mark.slurm
def test_preempted_and_resumed(run: Run, cluster: None, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    slow = ("--checkpoint.every_steps", 1000, "--log.every_steps", 1)
    submit(run, folder, *slow, "--model.name", "tests.nets:slow_mlp")
    at_step(folder, 7)
    words = ("--partition", "urgent", "--nodes", "2", "--exclusive", "--wrap", "sleep 1")
    slurm("sbatch", *words, "--output", "/dev/null")
    finished(folder)
    log = "".join(p.read_text() for p in (folder / "jobs").glob("*.out"))
    assert "stopped after step" in log
    assert "going on from" in log
    steps = list(metrics(folder, "train/loss"))
    assert steps == list(range(1, 61))
    assert np.isfinite(list(metrics(folder, "train/loss").values())).all()
    equal(undisturbed, folder)


def task(rank: int, folder: Path) -> int:
    """The process of a rank of the run in a folder."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        mine = b"submitit.core._submit" in words and str(folder / "jobs").encode() in words
        if mine and f"SLURM_PROCID={rank}".encode() in variables:
            return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slurm
def test_requeued_and_killed(run: Run, cluster: None, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(run, folder, "--model.name", "tests.nets:slow_mlp")  # a checkpoint each 5 steps
    at_step(folder, 7)
    slurm("scontrol", "requeue", job)
    at_step(folder, 22)
    os.kill(task(2, folder), signal.SIGKILL)
    finished(folder)
    log = "".join(p.read_text() for p in (folder / "jobs").glob("*.out"))
    assert log.count("going on from") == 2
    assert len((folder / "jobs" / "deaths").read_text().splitlines()) == 1
    equal(undisturbed, folder)


@pytest.mark.slurm
def test_without_submitit(cluster: None, undisturbed: Path, tmp_path: Path) -> None:
    """slurm/finetune.sbatch: preempted, requeued, and equal to torchrun on one machine."""
    folder, log = tmp_path / "a run", tmp_path / "log.txt"
    options = (*PLAIN, "--model.name", "tests.nets:slow_mlp", "--output", folder)
    words = ("--gpus-per-node=0", "--cpus-per-task=2", "--time=5", "--output", log)
    text = slurm("sbatch", *words, "slurm/finetune.sbatch", *options, env=SBATCH)
    job = text.split()[-1]
    at_step(folder, 7)
    slurm("scancel", "--batch", "--signal=USR2", job)
    assert finished(folder)["ranks"] == 4
    assert "going on from" in log.read_text()
    equal(undisturbed, folder)


@pytest.mark.slurm
def test_an_array_without_submitit(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    words = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=5", "--output", tmp_path / "%a.txt")
    options = ("--evaluation.num_images", 200, "--output", folder)
    slurm("sbatch", *words, "--array=0,2", "slurm/evaluate.sbatch", *options, env=SHARDS)
    summary = folder / "summary.json"
    until(lambda: len(list(folder.glob("results/*/runs.jsonl"))) == 2, tmp_path)
    assert not summary.exists()
    slurm("sbatch", *words, "--array=1", "slurm/evaluate.sbatch", *options, env=SHARDS)
    until(summary.exists, tmp_path)
    assert json.loads(summary.read_text())["num_samples"] == 200


@pytest.mark.slurm
def test_shards_and_the_job_that_joins_them(run: Run, cluster: None, tmp_path: Path) -> None:
    options = ("--model.name", "tests.nets:slow_mlp", "--evaluation.num_images", 400)
    options += ("--evaluation.batch_size", 8)
    folder = tmp_path / "a run"
    words = ("--shards", 5, "--cpus-per-task", 1, "--time", "5m", "--grace", 30, "--")
    done = run("launchers/evaluate.py", *words, *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    job = json.loads((folder / "submission.json").read_text())["job"]
    until(lambda: bool(list(folder.glob("results/2-of-5/rank0.jsonl"))), tmp_path)
    slurm("scancel", f"{job}_2")
    last = folder / "jobs" / re.search(r"its log: .*/(\S+)", done.stdout)[1]
    until(lambda: last.exists() and "missing" in last.read_text(), tmp_path)
    assert re.search(r"of 400 images are missing: \d+ of shard 2/5 ", last.read_text())
    assert not (folder / "summary.json").exists()
    done = run("launchers/evaluate.py", *words, *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^shards       2/5$", done.stdout, re.MULTILINE)
    until((folder / "summary.json").exists, tmp_path)
    whole = tmp_path / "whole"
    assert run("pipeline/evaluate.py", *options, "--output", whole).returncode == 0
    same(whole, folder)
    done = run("launchers/evaluate.py", *words, *options, "--output", folder)
    assert "all images are done" in done.stdout


@pytest.mark.slurm
def test_what_the_cluster_refuses_is_said_in_its_words(
    run: Run, cluster: None, tmp_path: Path
) -> None:
    cases = [
        (("--partition", "nowhere"), "invalid partition specified: nowhere"),
        (("--nodes", 9), "sbatch: "),
        (("--time", "3d"), "sbatch: "),
    ]
    for words, said in cases:
        line = expect_error(
            run,
            *words,
            "--",
            *PLAIN,
            "--train.batch_size",
            360,
            "--output",
            tmp_path / "x",
            script=SCRIPT,
        )
        assert said in line


@pytest.mark.slurm
@pytest.mark.parametrize("script", ["finetune", "evaluate"])
def test_scripts_are_accepted(cluster: None, script: str) -> None:
    slurm(
        "sbatch",
        "--test-only",
        "--gpus-per-node=2",
        "--cpus-per-task=2",
        "--time=30",
        f"slurm/{script}.sbatch",
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
