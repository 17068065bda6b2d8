"""Evaluations that are killed or stopped, and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.evaluation.results_appender import ResultsAppender
from pipeline.evaluation.samples import Example, Samples
from tests.helpers.evaluations import assert_same_results, kill_after_lines, results
from tests.helpers.in_process import EVALUATE, in_process, succeed
from tests.helpers.runs import (
    Run,
    children,
    command,
    environment,
    expect_error,
)


@pytest.mark.slow
def test_nothing_written_is_lost_by_a_kill(
    evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    small = (*evaluation_options, "--evaluation.batch_size", 20)
    num_kept = kill_after_lines(tmp_path, 60, *small)
    assert num_kept < 300
    with (tmp_path / "results/0-of-1/rank0.jsonl").open("a") as file:
        file.write('{"id": "torn')  # as a kill in mid-write leaves it
    output = succeed(EVALUATE, *small, "--output", tmp_path)
    assert f"{300 - num_kept} of 300 images to evaluate" in output
    assert_same_results(whole_evaluation, tmp_path)


@pytest.mark.slow
def test_killed_twice_and_done_in_part_by_a_shard(
    evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    small = (*evaluation_options, "--evaluation.batch_size", 20)
    first = kill_after_lines(tmp_path, 60, *small)
    second = kill_after_lines(tmp_path, first + 60, *small)
    assert second >= first + 60
    assert "are missing" in succeed(EVALUATE, *small, "--output", tmp_path, "--shard", "0/2")
    output = succeed(EVALUATE, *small, "--output", tmp_path)
    assert int(re.search(r"(\d+) of 300 images to evaluate", output)[1]) <= 150
    assert_same_results(whole_evaluation, tmp_path)


def test_a_signal_saves_and_stops(
    evaluation_options: tuple,
    whole_evaluation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append, small = ResultsAppender.append, (*evaluation_options, "--evaluation.batch_size", 20)

    def append_and_signal(self: ResultsAppender, samples: Samples, ids: list[str]) -> None:
        append(self, samples, ids)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsAppender, "append", append_and_signal)
        done = in_process(EVALUATE, *small, "--output", tmp_path)
    assert done.returncode == 75, done.stderr
    assert "interrupted; everything is saved: rerun the same command" in done.stdout
    num_left = int(
        re.match(r".*?(\d+) of 300", succeed(EVALUATE, *small, "--output", tmp_path), re.DOTALL)[1]
    )
    assert 0 < num_left < 300
    assert_same_results(whole_evaluation, tmp_path)


def test_an_end_between_an_example_and_its_row(
    evaluation_options: tuple,
    whole_evaluation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image with a row is not evaluated again, so its example must be there."""
    store = ResultsAppender.store_examples
    small = (*evaluation_options, "--evaluation.batch_size", 20)

    num_calls = 0

    def store_once(self: ResultsAppender, examples: list[Example]) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            raise KeyboardInterrupt
        store(self, examples)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsAppender, "store_examples", store_once)
        with pytest.raises(KeyboardInterrupt):
            in_process(EVALUATE, *small, "--output", tmp_path)
    succeed(EVALUATE, *small, "--output", tmp_path)
    assert_same_results(whole_evaluation, tmp_path)
    names = [
        {path.name for path in folder.glob("results/0-of-1/examples/*.npz")}
        for folder in (whole_evaluation, tmp_path)
    ]
    assert names[0]
    assert names[0] == names[1]


def test_a_kill_after_the_last_image(whole_evaluation: Path, tmp_path: Path) -> None:
    """The summary has the machine and versions from the record of a job that ended."""
    folder = tmp_path / "e"
    shutil.copytree(whole_evaluation, folder)
    (folder / "results/0-of-1/runs.jsonl").unlink()
    output = succeed(EVALUATE, "--config", folder / "config.yaml", "--output", folder)
    assert "0 of 300 images to evaluate" in output
    runs = json.loads((folder / "summary.json").read_text())["runs"]
    assert [(run["num_images"], "torch" in run["versions"]) for run in runs] == [(0, True)]
    succeed(EVALUATE, "--config", folder / "config.yaml", "--output", folder)
    assert json.loads((folder / "summary.json").read_text())["runs"] == runs


def test_a_dry_run_counts_what_is_done(
    evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    """And refuses what the evaluation would refuse; nothing is written."""
    results = tmp_path / "results/0-of-1"
    results.mkdir(parents=True)
    shutil.copy(whole_evaluation / "results/0-of-1/manifest.json", results)
    lines = (whole_evaluation / "results/0-of-1/rank0.jsonl").read_text().splitlines(True)
    (results / "rank0.jsonl").write_text("".join(lines[:120]))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dry_run = (*evaluation_options, "--output", tmp_path, "--dry_run", "true")
    assert "180 of 300 images to evaluate" in succeed(EVALUATE, *dry_run)
    line = expect_error(in_process, *dry_run, "--evaluation.num_images", 10, script=EVALUATE)
    assert "results of another evaluation (this one -> that one: num_images: 10 ->" in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(run: Run, mlp_weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", mlp_weights, "--evaluation.batch_size", 5, "--output", tmp_path)
    process = subprocess.Popen(
        command(EVALUATE, *options, ranks=2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    rows = tmp_path / "results" / "0-of-1" / "rank1.jsonl"
    while not (rows.exists() and rows.stat().st_size > 5000):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(children(process.pid)[0], signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert "interrupted; everything is saved: rerun the same command" in output, errors
    assert "2000 of 2000" not in succeed(EVALUATE, *options)
    assert results(tmp_path)[0]["num_samples"] == 2000
