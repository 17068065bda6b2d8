"""What a small run writes and prints."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.in_process import call
from tests.helpers.tiny import finished, metric_rows


def test_tensorboard_shows_the_metrics_of_the_table(tiny_run: Path) -> None:
    board = EventAccumulator(str(tiny_run / "tensorboard"))
    board.Reload()
    after = json.loads((tiny_run / "summary.json").read_text())["after"]
    for name in ("accuracy", "rho2", "num_unflipped"):
        (point,) = board.Scalars(f"after/{name}")
        assert (point.step, point.value) == (18, pytest.approx(after[name]))


def test_another_norm_and_fgs_in_training(tmp_path: Path) -> None:
    fgs = ("--evaluation.fgs.search", "true", "--evaluation.fgs.eps", "[0.01]")
    options = ("--evaluation.attack.norm", "inf", "--checkpoint.best", "rho2", *fgs)
    options += ("--train.pretrain_lr", 0.1, "--objective.method", "clean")  # right for over half
    options += ("--train.epochs", 1)
    ended = finished(tmp_path, *options)
    history = json.loads((tmp_path / "summary.json").read_text())["history"]
    assert "rho_inf, relative" in ended.stdout
    last = history[-1]["fgs"]
    said = f"{last['accuracy'][0]['accuracy']:.2%} after FGS 0.01, eps_ref {last['eps_ref']:.4g}"
    assert said in ended.stdout
    recorded = [row for row in metric_rows(tmp_path) if "evaluation/eps_ref" in row][-1]
    assert recorded["evaluation/eps_ref"] == last["eps_ref"]
    assert recorded["evaluation/accuracy_after_fgs_0.01"] == last["accuracy"][0]["accuracy"]


def test_the_next_commands_can_be_run(tiny_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "a run")
    lines = finished(folder).stdout.splitlines()
    assert lines[-1].endswith(f"tensorboard --logdir '{folder}'")
    argv = shlex.split(lines[-2].removeprefix("evaluate it: "))
    assert argv[0] == "python"
    ended = call(*argv[1:])
    assert ended.code == 0, ended.stderr
    table = shlex.split(ended.stdout.splitlines()[-1].removeprefix("as a table: "))
    assert table[1:] == ["tools/report.py", "table", f"{folder}-evaluation"]
    assert call(*table[1:]).code == 0
