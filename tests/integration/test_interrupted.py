"""What a run leaves behind that is killed or stopped, and what resuming makes of it.

In this process, where the cut can be made at one exact place.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import CheckpointConfig
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.trainer import Trainer
from tests.helpers.runs import assert_same_weights
from tests.helpers.tiny import finetune, finished, kill_at_step, metric_rows


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


@pytest.mark.slow
def test_best_survives_a_kill_between_its_file_and_the_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, steps = checkpoint.write, []

    def cut(path: Path, state: dict[str, Any]) -> None:
        steps.append(state.get("step"))
        if steps.count(18) == 2:
            raise KeyboardInterrupt
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path)
    finished(tmp_path)
    assert step_of(tmp_path / "checkpoints" / "best.pt") == 18
    assert metric_rows(tmp_path) == metric_rows(tiny_run)


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_best_is_restored_from_the_newest_checkpoint(tiny_copy: Path, damage: str) -> None:
    best = tiny_copy / "checkpoints" / "best.pt"
    if damage == "removed":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:1000])
    ended = finished(tiny_copy)
    assert "warning" not in ended.stderr
    newest = torch.load(best.with_name("step-000000018.pt"), weights_only=True)
    restored = torch.load(best, weights_only=True)
    assert restored["step"] == 18
    assert all(torch.equal(value, newest["model"][k]) for k, value in restored["model"].items())


def test_best_that_cannot_be_restored(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, CheckpointConfig(keep_last=1))
    for step in (10, 20, 30):
        kept.save(step, {"step": step}, best=step == 20)
    assert kept.restore_best(20, 30) == ""
    assert kept.restore_best(15, 15) == "", "the run comes to step 20 again"
    assert kept.restore_best(30, 30) == ""
    assert step_of(kept.best_path) == 30, "best.pt was of another step, and the checkpoint was kept"
    kept.best_path.unlink()
    warning = kept.restore_best(20, 30)
    assert warning.startswith(f"{kept.best_path} is missing or damaged")
    assert "the best accuracy so far is that of step 20" in warning
    assert "cannot be restored" in warning
    assert not kept.best_path.exists()


def stop_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """SIGTERM in the step after ``number`` others."""
    train_step = Trainer._train_step

    def step(self: Trainer, batches: Any) -> Any:
        if self.step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batches)

    patch.setattr(Trainer, "_train_step", step)


def stop_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> None:
    """SIGUSR2 in the evaluation after ``number`` steps."""
    evaluate = Trainer._evaluate

    def evaluation(self: Trainer, monitor: Any) -> None:
        if self.step == number:
            os.kill(os.getpid(), signal.SIGUSR2)
        evaluate(self, monitor)

    patch.setattr(Trainer, "_evaluate", evaluation)


@pytest.mark.parametrize(
    ("stop", "number", "saved"),
    [
        pytest.param(stop_in_step, 5, 6, marks=pytest.mark.slow),
        (stop_in_step, 9, 10),
        pytest.param(stop_in_evaluation, 12, 12, marks=pytest.mark.slow),
    ],
)
def test_stopped_by_a_signal_and_resumed(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[pytest.MonkeyPatch, int], None],
    number: int,
    saved: int,
) -> None:
    with monkeypatch.context() as patch:
        stop(patch, number)
        ended = finetune(tmp_path)
    assert ended.code == 75, ended.stderr
    assert f"interrupted after step {saved}; everything is saved: rerun the same" in ended.stdout
    assert (tmp_path / "checkpoints" / f"step-{saved:09}.pt").exists()
    assert not any(r["step"] == saved and "evaluation/rho2" in r for r in metric_rows(tmp_path))
    finished(tmp_path)
    assert metric_rows(tmp_path) == metric_rows(tiny_run)
    assert_same_weights(tmp_path, tiny_run)


@pytest.mark.slow
def test_killed_between_two_rows_of_metrics_and_resumed(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_five = "--checkpoint.every_steps", 5
    with monkeypatch.context() as patch:
        kill_at_step(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *every_five)
    assert (tmp_path / "checkpoints" / "step-000000006.pt").exists()
    finished(tmp_path, *every_five)
    assert metric_rows(tmp_path) == metric_rows(tiny_run)
    assert_same_weights(tmp_path, tiny_run)


def test_killed_between_an_evaluation_and_its_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the same step exists: the evaluation is repeated, but not its line."""
    every_six = "--checkpoint.every_steps", 6
    save, steps = Checkpoints.save, []

    def cut(self: Checkpoints, step: int, state: dict[str, Any], best: bool = False) -> Path:
        steps.append(step)
        if steps.count(12) == 2:
            raise KeyboardInterrupt
        return save(self, step, state, best)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *every_six)
    assert "evaluation/rho2" in metric_rows(tmp_path)[-1]
    ended = finished(tmp_path, *every_six)
    assert "step-000000012.pt, step 12" in ended.stdout
    assert metric_rows(tmp_path) == metric_rows(tiny_run)


def test_a_checkpoint_without_sums_resumes(tiny_copy: Path) -> None:
    """As those of earlier versions."""
    for path in (tiny_copy / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        del state["window"]
        torch.save(state, path)
    assert "resuming from" in finished(tiny_copy).stdout


def test_damaged_lines_of_metrics_are_dropped_with_a_warning(
    tiny_run: Path, tiny_copy: Path
) -> None:
    path = tiny_copy / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1:1] = ['{"step": 4, "train\n', "[]\n", '{"time": 3}\n']
    path.write_text("".join(lines) + '{"step": 18, "torn')
    ended = finished(tiny_copy)
    warning = f"warning: {path}: 3 lines are damaged and left out (2, 3, 4)"
    assert warning in ended.stderr
    assert metric_rows(tiny_copy) == metric_rows(tiny_run)
