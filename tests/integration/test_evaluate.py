"""pipeline/evaluate.py as a user runs it."""

import fcntl
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.evaluation.samples import Samples
from tests.helpers.evaluations import assert_same_results, results
from tests.helpers.in_process import EVALUATE, in_process, succeed
from tests.helpers.runs import (
    Run,
    expect_error,
)

COLUMNS = {"id", *(field.name for field in fields(Samples))}


def test_what_an_evaluation_writes(whole_evaluation: Path) -> None:
    summary, rows = results(whole_evaluation)
    assert summary["num_samples"] == len(rows) == 300
    assert set(next(iter(rows.values()))) == COLUMNS
    assert summary["num_correct"] == sum(r["label"] == r["prediction"] for r in rows.values())
    ratios = [r["perturbation_norm"] / r["image_norm"] for r in rows.values()]
    assert summary["rho2"] == pytest.approx(sum(ratios) / 300)
    definition = summary["definition"]
    assert (definition["max_iterations"], definition["classes"]) == (5, "every")
    assert definition["visit"] == "all"


def test_shards_and_ranks_give_the_same(
    run: Run, evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    for number in (2, 0, 1):  # in any order, one on two ranks
        shard = (*evaluation_options, "--shard", f"{number}/3", "--output", tmp_path)
        done = run(EVALUATE, *shard, ranks=2) if number == 0 else in_process(EVALUATE, *shard)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "summary.json").exists() == (number == 1)
    assert_same_results(whole_evaluation, tmp_path)
    (tmp_path / "summary.json").unlink()
    succeed("tools/report.py", "merge", tmp_path)
    assert_same_results(whole_evaluation, tmp_path)


@pytest.mark.slow
def test_three_ranks_give_the_same(
    run: Run, evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    done = run(EVALUATE, *evaluation_options, "--output", tmp_path, ranks=3)
    assert done.returncode == 0, done.stderr
    assert_same_results(whole_evaluation, tmp_path)


def test_two_at_once_do_not_mix(
    evaluation_options: tuple, whole_evaluation: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole_evaluation, tmp_path / "copy")
    with (folder / "results" / "0-of-1" / "rank0.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        line = expect_error(in_process, *evaluation_options, "--output", folder, script=EVALUATE)
    assert "another process is writing" in line


def test_fgs_at_the_eps_ref_of_another_evaluation(
    mlp_weights: Path, whole_evaluation: Path, tmp_path: Path
) -> None:
    searched, rows = results(whole_evaluation)
    eps_ref = searched["fgs"]["eps_ref"]
    assert eps_ref > 0
    argv = ("--model.weights", mlp_weights, "--evaluation.num_images", 300)
    succeed(EVALUATE, *argv, "--evaluation.fgs.reference", whole_evaluation, "--output", tmp_path)
    fgs = results(tmp_path)[0]["fgs"]
    assert fgs["reference"] == eps_ref
    assert len(fgs["at_reference"]) == 3
    for fraction, accuracy in fgs["at_reference"].items():
        read = sum(row["fgs_eps"] > float(fraction) * eps_ref for row in rows.values()) / 300
        assert accuracy == pytest.approx(read, abs=0.005)


def test_reads_the_yaml_and_the_weights_of_a_run(trained_mlp: Path, tmp_path: Path) -> None:
    config = ("--config", trained_mlp / "config.yaml")
    after = json.loads((trained_mlp / "summary.json").read_text())["after"]
    for name in ("weights.pth", "checkpoints/step-000000012.pt"):
        folder = tmp_path / name.replace("/", "-")
        succeed(EVALUATE, *config, "--model.weights", trained_mlp / name, "--output", folder)
        summary, _ = results(folder)
        assert summary["rho2"] == pytest.approx(after["rho2"], rel=1e-6)
        assert summary["accuracy"] == after["accuracy"]
    line = expect_error(in_process, *config, "--output", trained_mlp, script=EVALUATE)
    assert "holds another kind of run" in line


def test_shards_of_other_evaluations_are_refused(trained_mlp: Path, tmp_path: Path) -> None:
    config = ("--config", trained_mlp / "config.yaml", "--output", tmp_path)
    other = ("--model.weights", trained_mlp / "reference.pth")
    succeed(EVALUATE, *config, *other, "--shard", "0/2")
    wrong = (*config, "--model.weights", trained_mlp / "weights.pth", "--shard", "1/2")
    line = expect_error(in_process, *wrong, script=EVALUATE)
    assert "results of another evaluation (this one -> that one: weights:" in line
    wrong = (*config, *other, "--evaluation.attack.max_iterations", 9, "--shard", "1/2")
    line = expect_error(in_process, *wrong, script=EVALUATE)
    assert "definition.max_iterations: 9 -> 5" in line
    line = expect_error(in_process, "merge", tmp_path, script="tools/report.py")
    assert "50 of 100 images are missing: 50 of shard 1/2" in line
    output = succeed("tools/report.py", "merge", tmp_path, "--partial")
    assert "50 images are missing" in output
