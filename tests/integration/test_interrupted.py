"""The files of runs that were killed or stopped, and how these runs resume.

The runs are in this process, where they can be interrupted at an exact point.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import CheckpointConfig
from pipeline.runtime import files
from pipeline.runtime.files import atomic_write, remove_abandoned
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.trainer import Trainer
from tests.helpers.runs import assert_same_weights
from tests.helpers.tiny import finetune, kill_at_step
from tests.unit.mistakes.case import EVALUATE, CommandResult, call


def finished(folder: Path, *options: object) -> CommandResult:
    ended = finetune(folder, *options)
    assert ended.code == 0, ended.stderr
    return ended


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without values that depend on the time."""
    clock = ("time", "train/images_per_second", "train/data_wait", "train/peak_memory_mib")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run, which tests may change."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption. Its last evaluation is its best."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished(folder)
    history = json.loads((folder / "summary.json").read_text())["history"]
    assert history[2]["accuracy"] > history[1]["accuracy"]
    assert step_of(folder / "checkpoints" / "best.pt") == 18
    return folder


def test_best_survives_a_kill_between_its_file_and_the_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert rows(tmp_path) == rows(whole)


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_best_is_restored_from_the_newest_checkpoint(copy: Path, damage: str) -> None:
    best = copy / "checkpoints" / "best.pt"
    if damage == "removed":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:1000])
    ended = finished(copy)
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
    """Send SIGTERM during the step that follows ``number`` others."""
    train_step = Trainer._train_step

    def step(self: Trainer, batches: Any) -> Any:
        if self.step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batches)

    patch.setattr(Trainer, "_train_step", step)


def stop_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> None:
    """Send SIGUSR2 during the evaluation after ``number`` steps."""
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
        (stop_in_evaluation, 12, 12),
    ],
)
def test_stopped_by_a_signal_and_resumed(
    whole: Path,
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
    assert not any(r["step"] == saved and "evaluation/rho2" in r for r in rows(tmp_path))
    finished(tmp_path)
    assert rows(tmp_path) == rows(whole)
    assert_same_weights(tmp_path, whole)


def test_killed_between_two_rows_of_metrics_and_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_five = "--checkpoint.every_steps", 5
    with monkeypatch.context() as patch:
        kill_at_step(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *every_five)
    assert (tmp_path / "checkpoints" / "step-000000006.pt").exists()
    finished(tmp_path, *every_five)
    assert rows(tmp_path) == rows(whole)
    assert_same_weights(tmp_path, whole)


def test_a_checkpoint_without_sums_resumes(copy: Path) -> None:
    """Checkpoints of earlier versions have no sums."""
    for path in (copy / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        del state["window"]
        torch.save(state, path)
    assert "resuming from" in finished(copy).stdout


def test_damaged_lines_of_metrics_are_dropped_with_a_warning(whole: Path, copy: Path) -> None:
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1:1] = ['{"step": 4, "train\n', "[]\n", '{"time": 3}\n']
    path.write_text("".join(lines) + '{"step": 18, "torn')
    ended = finished(copy)
    warning = f"warning: {path}: 3 lines are damaged and left out (2, 3, 4)"
    assert warning in ended.stderr
    assert rows(copy) == rows(whole)


def test_tensorboard_shows_the_metrics_of_the_table(whole: Path) -> None:
    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    after = json.loads((whole / "summary.json").read_text())["after"]
    for name in ("accuracy", "rho2", "num_unflipped"):
        (point,) = board.Scalars(f"after/{name}")
        assert (point.step, point.value) == (18, pytest.approx(after[name]))


def test_another_norm_and_fgs_in_training(tmp_path: Path) -> None:
    fgs = ("--evaluation.fgs.search", "true", "--evaluation.fgs.eps", "[0.01]")
    options = ("--evaluation.attack.norm", "inf", "--checkpoint.best", "rho2", *fgs)
    options += (
        "--train.pretrain_lr",
        0.1,
        "--objective.method",
        "clean",
    )  # correct for over half
    options += ("--train.epochs", 1)
    ended = finished(tmp_path, *options)
    history = json.loads((tmp_path / "summary.json").read_text())["history"]
    assert "rho_inf, relative" in ended.stdout
    last = history[-1]["fgs"]
    said = f"{last['accuracy'][0]['accuracy']:.2%} after FGS 0.01, eps_ref {last['eps_ref']:.4g}"
    assert said in ended.stdout
    recorded = [row for row in rows(tmp_path) if "evaluation/eps_ref" in row][-1]
    assert recorded["evaluation/eps_ref"] == last["eps_ref"]
    assert recorded["evaluation/accuracy_after_fgs_0.01"] == last["accuracy"][0]["accuracy"]


def test_the_next_commands_can_be_run(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "a run")
    lines = finished(folder).stdout.splitlines()
    assert lines[-1].endswith(f"tensorboard --logdir '{folder}'")
    argv = shlex.split(lines[-2].removeprefix("evaluate it: "))
    assert argv[0] == "python"
    ended = call(*argv[1:])
    assert ended.code == 0, ended.stderr
    table = shlex.split(ended.stdout.splitlines()[-1].removeprefix("as a table: "))
    assert table[1:] == ["tools/report.py", "table", f"{folder}-evaluation"]
    assert call(*table[1:]).code == 0


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_temporary_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    scope, dead = files._SCOPE, ended_process()
    old = {f".best.pt.tmp-{dead}-{scope}", f".a b.parquet.tmp-{dead}-{scope}", ".x.tar.tmp-1-far"}
    kept = {
        f".best.pt.tmp-{os.getpid()}-{scope}",  # of a running process
        ".best.pt.tmp-1-far",  # of another machine, not old
        f".best.pt.{dead}",
        f"best.pt.tmp-{dead}-{scope}",
        ".notes.tmp-old",
        "best.pt",
    }
    for name in old | kept:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".x.tar.tmp-1-far", (0, 0))
    folder = tmp_path / f".folder.tmp-{dead}-{scope}"
    folder.mkdir()
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name}
    remove_abandoned(tmp_path / "nowhere")


def test_a_container_does_not_remove_files_of_another_with_the_same_host_name(
    tmp_path: Path,
) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.runtime import files\n"
        "Path(sys.argv[1], f'.x.tmp-{sys.argv[2]}-{files._SCOPE}').write_text('')"
    )
    container = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*container, "true"]).returncode:
        pytest.skip("needs unshare, and namespaces for users")
    argv = [sys.executable, "-c", script, tmp_path, str(ended_process())]
    subprocess.run([*container, *argv], check=True)
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    subprocess.run(argv, check=True)
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_write_is_swept_by_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.runtime.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "x.parquet"
    subprocess.run([sys.executable, "-c", script, path], env=os.environ)
    assert [p.name.split(".tmp-")[0] for p in tmp_path.iterdir()] == [".x.parquet"]
    with atomic_write(path) as partial:
        partial.write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_a_run_sweeps_all_its_folders(copy: Path, tmp_path: Path) -> None:
    evaluate = (EVALUATE, "--evaluation.num_images", 10, "--output", tmp_path / "e")
    assert call(*evaluate).code == 0
    name = f".x.tmp-{ended_process()}-{files._SCOPE}"
    results = tmp_path / "e" / "results" / "0-of-1"
    for folder in (
        copy,
        copy / "checkpoints",
        results.parent.parent,
        results,
        results / "examples",
    ):
        (folder / name).write_text("")
    finished(copy)
    assert call(*evaluate).code == 0
    assert not list(tmp_path.rglob(".*.tmp-*"))
