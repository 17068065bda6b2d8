"""Arrays on a real SLURM: shards, chains, sweeps; and how they are watched and cancelled."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.evaluations import assert_same_results
from tests.helpers.in_process import call
from tests.helpers.runs import Run
from tests.helpers.slurm import (
    PLAIN,
    SCRIPT,
    SHARDS,
    TWO_NODES,
    equal,
    finished,
    job_of,
    log_of,
    slurm,
    submit,
    task,
    wait_for_step,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
CHAIN, JOBS = "launchers/chain.py", "launchers/jobs.py"
ALONE = ("--cpus-per-task", 1, "--time", "5m", "--signal-before", 30)


@pytest.fixture(scope="module")
def limited(run: Run, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that needs longer than its time limit; other tests go on meanwhile."""
    folder = tmp_path_factory.mktemp("limited") / "run"
    where = (*TWO_NODES, "--time", "1m", "--signal-before", 5)
    submit(run, folder, "--model.name", "tests.helpers.nets:slowest_mlp", where=where)
    return folder


def states(folder: Path) -> dict[str, str]:
    """What launchers/jobs.py says of each run below a folder, by its name."""
    ended = call(JOBS, folder)
    assert ended.code == 0, ended.stderr
    lines = (line.strip() for line in ended.stdout.splitlines()[1:])
    return {line.split("  ")[0].rpartition("/")[2]: line for line in lines if line}


def test_an_array_without_submitit(limited: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    argv = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=5", "--output", tmp_path / "%a.txt")
    options = ("--evaluation.num_images", 200, "--output", folder)

    def said() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("*.txt"))

    slurm("sbatch", *argv, "--array=0,2", "slurm/evaluate.sbatch", *options, env=SHARDS)
    summary = folder / "summary.json"
    wait_until(lambda: len(list(folder.glob("results/*/runs.jsonl"))) == 2, said)
    assert not summary.exists()
    slurm("sbatch", *argv, "--array=1", "slurm/evaluate.sbatch", *options, env=SHARDS)
    wait_until(summary.exists, said)
    assert json.loads(summary.read_text())["num_samples"] == 200


def test_shards_and_the_job_that_joins_them(run: Run, cluster: None, tmp_path: Path) -> None:
    options = ("--model.name", "tests.helpers.nets:slower_mlp", "--evaluation.num_images", 120)
    options += ("--evaluation.batch_size", 8)
    folder = tmp_path / "a run"
    argv = ("--shards", 3, *ALONE, "--")
    done = run("launchers/evaluate.py", *argv, *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    second = folder / "results" / "1-of-3" / "rank0.jsonl"
    wait_until(second.exists, lambda: log_of(folder))
    slurm("scancel", f"{job_of(folder)}_1")
    last = Path(re.search(r"merged by .* log (.*)", done.stdout)[1])
    wait_until(lambda: last.exists() and "missing" in last.read_text(), lambda: log_of(folder))
    assert re.search(r"of 120 images are missing: \d+ of shard 1/3 ", last.read_text())
    assert not (folder / "summary.json").exists()
    done = run("launchers/evaluate.py", *argv, *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^shards       1/3$", done.stdout, re.MULTILINE)
    finished(folder)
    whole = tmp_path / "whole"
    assert run("pipeline/evaluate.py", *options, "--output", whole).returncode == 0
    assert_same_results(whole, folder)
    ended = call("launchers/evaluate.py", *argv, *options, "--output", folder)
    assert "all images are done" in ended.stdout


def test_a_chain_ends_with_a_report(run: Run, cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    where = (*ALONE, "--shard-time", "5m", "--shards", 2)
    argv = (*where, "--", *PLAIN, "--output", folder, "--", "--evaluation.num_images", 100)
    # Nothing can start, however slow this machine is at looking.
    taken = slurm("sbatch", "--parsable", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 300")
    done = run(CHAIN, *argv)
    assert done.returncode == 0, done.stderr
    shown = wait_until(lambda: _waits(folder), lambda: str(states(folder)))
    assert [*shown] == ["a run", "before", "after", "report"]
    assert "Dependency" not in shown["a run"]
    slurm("scancel", taken.strip())
    page = folder / "report" / "report.md"
    wait_until(page.exists, lambda: run(JOBS, "logs", folder).stdout)
    rows = list(csv.DictReader((folder / "report" / "table.csv").open()))
    for name, row in zip(("before", "after"), rows, strict=True):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert summary["num_samples"] == 100
        assert float(row["rho2"]) == summary["rho2"]
        assert float(row["accuracy"]) == summary["accuracy"]
    assert float(rows[1]["accuracy_at_1_eps_ref"]) == 0.5
    for image in re.findall(r"\((\S+\.png)\)", page.read_text()):
        assert (page.parent / image).stat().st_size > 10_000
    shown = wait_until(lambda: _ended(folder), lambda: str(states(folder)))
    assert "training 30/30" in shown["a run"]
    assert "evaluating 100/100" in shown["after"]
    assert f"{summary['rho2']:.4g}" in shown["after"]
    ended = call(CHAIN, *argv)
    assert [line.split()[0] for line in ended.stdout.splitlines()] == [
        *("report", "progress", "when"),
    ]


def _waits(folder: Path) -> dict[str, str] | None:
    """The states, once all but the run wait for others; SLURM says why a moment late."""
    lines = states(folder)
    rest = [line for name, line in lines.items() if name != "a run"]
    return lines if all("PENDING (Dependency)" in line for line in rest) else None


def _ended(folder: Path) -> dict[str, str] | None:
    lines = states(folder)
    return lines if all("COMPLETED" in line for line in lines.values()) else None


def _cut(folder: Path) -> dict[str, str] | None:
    """The states, once the accounts know that the first link failed and nothing waits for it."""
    lines = states(folder)
    return lines if "FAILED" in str(lines) and "PENDING" not in str(lines) else None


def test_a_first_link_that_fails_leaves_nothing_waiting(
    run: Run, cluster: None, tmp_path: Path
) -> None:
    options = ("--model.name", "tests.helpers.nets:exploding", "--output", tmp_path)
    done = run(CHAIN, *ALONE, "--shard-time", "5m", "--shards", 2, "--", *options)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"\d+", " ".join(re.findall(r"job ([\d, ]+), log", done.stdout)))
    assert len(jobs) == 6
    list_jobs = ("squeue", "-h", "-o", "%F")
    wait_until(lambda: not set(jobs) & set(slurm(*list_jobs).split()), lambda: slurm("squeue"))
    shown = wait_until(lambda: _cut(tmp_path), lambda: str(states(tmp_path)))
    assert "FAILED" in shown[tmp_path.name]
    assert "2 CANCELLED" in shown["before"]
    assert "2 CANCELLED" in shown["after"]
    assert "CANCELLED" in shown["report"]
    assert "not finite" in run(JOBS, "logs", tmp_path).stdout


def test_a_sweep_of_which_parts_are_cut(run: Run, cluster: None, tmp_path: Path) -> None:
    sweep = ("--sweep", "regularizer.c", 5, 10, 15, "--max-parallel", 3, *ALONE)
    few = ("--model.name", "tests.helpers.nets:slower_mlp", "--train.pretrain_epochs", 0)
    argv = (*sweep, "--", *PLAIN, *few, "--output", tmp_path / "s")
    done = run(SCRIPT, *argv)
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / "s" / f"c={c}" for c in (5, 10, 15)]
    for folder in runs:
        wait_for_step(folder, 3)
    assert "RUNNING" in call(SCRIPT, *argv).stderr
    assert call(JOBS, "cancel", runs[0]).stdout.startswith("cancelled job ")
    slurm("scancel", "--signal=USR2", job_of(runs[1]))
    # The last of an array bears the number of the whole: it alone must start again.
    os.kill(task(tmp_path / "s" / "jobs", SLURM_ARRAY_TASK_ID=2), signal.SIGKILL)
    for folder in runs[1:]:
        finished(folder)
        assert log_of(folder).count("resuming from") == 1
    assert "interrupted after step" in log_of(runs[0])
    assert "resuming from" not in log_of(runs[0])
    shown = states(tmp_path)
    assert "CANCELLED" in shown["c=5"]
    tuned = [json.loads((folder / "summary.json").read_text())["after"] for folder in runs[1:]]
    assert tuned[0] != tuned[1]


def test_after_a_time_limit(limited: Path, two_ranks: Path) -> None:
    finished(limited)
    assert "interrupted after step" in log_of(limited)
    assert "resuming from" in log_of(limited)
    equal(two_ranks, limited)
