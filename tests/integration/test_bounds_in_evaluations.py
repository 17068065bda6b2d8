"""evaluation.lower_bound: an interval for each image's distance, over shards, in both spaces."""

import json
from pathlib import Path

import pytest

from tests.helpers.evaluations import assert_same_results, results
from tests.helpers.in_process import EVALUATE, in_process, succeed
from tests.helpers.tiny import finished, metric_rows

SMALL = ("--evaluation.num_images", 24, "--evaluation.batch_size", 5)
BOUND = ("--evaluation.lower_bound", "true")


@pytest.fixture(scope="module")
def evaluation(mlp_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An evaluation of 24 digits with lower bounds, and what it printed."""
    folder = tmp_path_factory.mktemp("bounds") / "whole"
    options = ("--model.weights", mlp_weights, *SMALL, *BOUND)
    return folder, succeed(EVALUATE, *options, "--output", folder)


def test_every_image_has_an_interval(evaluation: tuple[Path, str]) -> None:
    folder, stdout = evaluation
    summary, rows = results(folder)
    assert len(rows) == 24
    for row in rows.values():
        assert 0 < row["lower_bound"] <= row["perturbation_norm"]
        assert row["lower_bound"] <= row["upper_bound"]
    bound = summary["diagnostics"]["lower_bound"]
    assert bound["num_images"] == 24
    assert bound["num_exact"] == sum(row["bound_exact"] for row in rows.values())
    mean = sum(row["lower_bound"] / row["image_norm"] for row in rows.values()) / 24
    assert bound["mean"] == pytest.approx(mean)
    assert bound["mean"] < bound["mean_upper"] <= summary["rho2"]
    interval = f"rho2 in [{bound['mean']:.4g}, {bound['mean_upper']:.4g}]"
    assert interval in stdout
    assert interval in succeed("tools/report.py", "merge", folder)
    assert "| rho2 lower | rho2 upper |" in succeed("tools/report.py", "table", folder)


def test_shards_equal_the_whole(
    evaluation: tuple[Path, str], mlp_weights: Path, tmp_path: Path
) -> None:
    for number in range(3):
        options = ("--model.weights", mlp_weights, *SMALL, *BOUND, "--shard", f"{number}/3")
        succeed(EVALUATE, *options, "--output", tmp_path)
    assert_same_results(evaluation[0], tmp_path)
    (_, whole), (_, merged) = results(evaluation[0]), results(tmp_path)
    for name, row in whole.items():
        assert merged[name]["lower_bound"] == row["lower_bound"]


def test_clipped_pixels(mlp_weights: Path, tmp_path: Path) -> None:
    space = ("--evaluation.space", "pixels", "--evaluation.clip", "true")
    options = ("--model.weights", mlp_weights, "--evaluation.num_images", 3, *space, *BOUND)
    succeed(EVALUATE, *options, "--output", tmp_path)
    for row in results(tmp_path)[1].values():
        assert 0 < row["lower_bound"] <= row["perturbation_norm"]


def test_a_net_without_lower_bounds_is_evaluated_and_says_so(tmp_path: Path) -> None:
    net = ("--model.name", "tests.helpers.nets:smooth_with_dropout")
    done = in_process(EVALUATE, *net, *SMALL, *BOUND, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    reason = "the net is not known to be piecewise linear: gelu"
    assert f"warning: evaluation.lower_bound has no effect: {reason}" in done.stderr
    assert f"no lower bound of distances: {reason}" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["no_lower_bound"] == reason
    assert summary["diagnostics"]["lower_bound"] is None
    assert "rho2 lower" not in succeed("tools/report.py", "table", tmp_path)


def test_without_the_option_nothing_is_measured(whole_evaluation: Path) -> None:
    summary, rows = results(whole_evaluation)
    assert summary["diagnostics"]["lower_bound"] is None
    assert summary["no_lower_bound"] == ""
    assert all(row["lower_bound"] != row["lower_bound"] for row in rows.values())


def test_evaluations_during_training(tmp_path: Path) -> None:
    options = ("--train.epochs", 0, "--evaluation.num_images", 4)
    finished(tmp_path, *options, *BOUND)
    (entry,) = json.loads((tmp_path / "summary.json").read_text())["history"]
    assert entry["diagnostics"]["lower_bound"]["num_images"] == 4
    assert metric_rows(tmp_path)
