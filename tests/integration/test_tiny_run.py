"""What a small run writes and prints."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import messages
from tests.helpers.in_process import EVALUATE, call
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
    results = Path(f"{folder}-evaluation")
    # The run itself evaluates 100 images, to be fast.
    assert json.loads((results / "summary.json").read_text())["num_samples"] == 2000
    table, compare, sheet = (line.partition(": ")[2] for line in ended.stdout.splitlines()[-3:])
    assert shlex.split(table)[1:] == ["tools/report.py", "table", str(results)]
    assert call(*shlex.split(table)[1:]).code == 0
    other = shlex.quote(str(results))
    command = shlex.split(compare.partition(" (OTHER: ")[0].replace("OTHER", other))
    assert command[2:] == ["compare", str(results), str(results)]
    assert call(*command[1:]).code == 0
    assert call(*shlex.split(sheet)[1:]).code == 0
    assert (results / "sheet.png").exists()


def test_the_command_after_a_shard_runs_the_next_one(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two shards"
    config = ("--config", tiny_run / "config.yaml", "--model.weights", tiny_run / "weights.pth")
    ended = call(EVALUATE, "--shard", "1/2", *config, "--output", folder)
    assert ended.code == 0, ended.stderr
    line, merge = ended.stdout.splitlines()[-2:]
    merged = call(*shlex.split(merge.partition("there is: ")[2])[1:])
    assert merged.code == 0, merged.stderr
    argv = shlex.split(line.removeprefix("next shard: "))
    assert argv.count("--shard") == 1
    ended = call(*argv[1:])
    assert ended.code == 0, ended.stderr
    assert json.loads((folder / "summary.json").read_text())["num_samples"] == 100


def test_no_next_commands_where_another_command_prints_them(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for name, value in messages.NO_NEXT_STEPS.items():
        monkeypatch.setenv(name, value)
    last = finished(folder).stdout.splitlines()[-1]
    assert last == f"{folder / 'summary.json'}, {folder / 'weights.pth'}"
