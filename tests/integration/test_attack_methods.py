"""Attacks by name and of other libraries in pipeline/evaluate.py: shards, stops, resume, merge."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from pipeline.evaluation.results_appender import ResultsAppender
from pipeline.evaluation.samples import Samples
from tests.helpers.evaluations import assert_same_results, kill_after_lines, results
from tests.helpers.in_process import EVALUATE, in_process, succeed

ADV_LIB = pytest.mark.skipif(
    importlib.util.find_spec("adv_lib") is None, reason="adv-lib is not installed"
)
METHODS = [
    ("best", "{}"),
    ("deepfool+foolbox.attacks:DDNAttack", '{"steps": 20}'),
    pytest.param("adv_lib.attacks:ddn", '{"steps": 20}', marks=ADV_LIB),
]


def options_of(mlp_weights: Path, method: str, options: str) -> tuple:
    return (
        *("--model.weights", mlp_weights, "--evaluation.num_images", 60),
        *("--evaluation.batch_size", 10, "--evaluation.attack.descent_steps", 20),
        *("--evaluation.attack.method", method, "--evaluation.attack.options", options),
    )


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_shards_that_are_stopped_and_resumed_equal_the_whole(
    mlp_weights: Path,
    method: str,
    options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = options_of(mlp_weights, method, options)
    succeed(EVALUATE, *argv, "--output", tmp_path / "whole")
    append = ResultsAppender.append

    def append_and_signal(self: ResultsAppender, samples: Samples, ids: list[str]) -> None:
        append(self, samples, ids)
        os.kill(os.getpid(), signal.SIGTERM)

    for number in (2, 0, 1):
        shard = (*argv, "--shard", f"{number}/3", "--output", tmp_path / "shards")
        if number == 0:
            with monkeypatch.context() as patch:
                patch.setattr(ResultsAppender, "append", append_and_signal)
                assert in_process(EVALUATE, *shard).returncode == 75
        succeed(EVALUATE, *shard)
    assert_same_results(tmp_path / "whole", tmp_path / "shards")
    summary, rows = results(tmp_path / "shards")
    assert summary["diagnostics"]["mean_queries"] > 20
    assert len(rows) == 60
    if "+" in method or method == "best":
        assert all(row["perturbation_norm"] <= min(row["distances"]) for row in rows.values())


@pytest.mark.slow
def test_an_attack_of_another_library_is_killed_and_resumed(
    mlp_weights: Path, tmp_path: Path
) -> None:
    argv = options_of(mlp_weights, "foolbox.attacks:DDNAttack", '{"steps": 60}')
    succeed(EVALUATE, *argv, "--output", tmp_path / "whole")
    assert kill_after_lines(tmp_path / "killed", 10, *argv) < 60
    succeed(EVALUATE, *argv, "--output", tmp_path / "killed")
    assert_same_results(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("foolbox.attacks:Nothing", "{}", "Nothing"),
        ("foolbox.attacks:DDNAttack", '{"stepps": 3}', "stepps"),
        ("ddnn", "{}", "evaluation.attack.method must be"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    mlp_weights: Path, method: str, options: str, message: str, tmp_path: Path
) -> None:
    argv = options_of(mlp_weights, method, options)
    done = in_process(EVALUATE, *argv, "--output", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
