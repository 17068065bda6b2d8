"""tools/chaos.py: the comparison of a disturbed run with an undisturbed one."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fault_campaign import comparison, files
from pipeline.runtime.files import atomic_write


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """What a fine-tuning leaves behind, in small."""
    folder = tmp_path / "whole"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1").write_text("")
    (folder / ".lock").write_text("process 1")
    for name in ("weights.pth", "reference.pth"):
        torch.save({"w": torch.tensor([1.0, 0.0])}, folder / name)
    for name in ("step-000000001.pt", "step-000000002.pt", "best.pt"):
        state = {"model": {"w": torch.ones(3)}, "step": 2, "seconds": 1.0}
        torch.save(state, folder / "checkpoints" / name)
    rows = [{"step": step, "time": 1.0, "train/loss": 1 / step} for step in (1, 2)]
    rows.append({"step": 2, "time": 1.0, "evaluation/rho2": 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"after": {"rho2": 0.1}, "training_seconds": 2.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def differences(folder: Path, whole: Path) -> list[str]:
    return comparison.differences(folder, whole) + comparison.left_over(folder, whole)


def test_equal_runs(copy: Path, whole: Path) -> None:
    """Times, events and the names of earlier checkpoints may differ."""
    lines = (copy / "metrics.jsonl").read_text().replace('"time": 1.0', '"time": 5.0')
    (copy / "metrics.jsonl").write_text(lines)
    (copy / "tensorboard" / "events.out.tfevents.2").write_text("")
    first = copy / "checkpoints" / "step-000000001.pt"
    first.rename(first.with_name("step-000000000.pt"))
    assert differences(copy, whole) == []


def change_a_bit(folder: Path) -> None:
    torch.save({"w": torch.tensor([1.0, -0.0])}, folder / "weights.pth")


def change_a_checkpoint(folder: Path) -> None:
    state = {"model": {"w": torch.zeros(3)}, "step": 2, "seconds": 1.0}
    torch.save(state, folder / "checkpoints" / "step-000000002.pt")


def repeat_a_row(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([lines[0], *lines]))


def drop_a_row(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))


def change_a_value(folder: Path) -> None:
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace("0.5", "0.25"))


def change_the_summary(folder: Path) -> None:
    (folder / "summary.json").write_text('{"after": {"rho2": 0.2}, "training_seconds": 2.0}')


def lose_the_weights(folder: Path) -> None:
    (folder / "weights.pth").unlink()


def leave_a_temporary_file(folder: Path) -> None:
    (folder / "checkpoints" / ".step-000000002.pt.tmp-17-abc").write_text("")


def leave_a_checkpoint(folder: Path) -> None:
    shutil.copy(folder / "checkpoints" / "best.pt", folder / "checkpoints" / "step-000000003.pt")


def set_a_checkpoint_aside(folder: Path) -> None:
    (folder / "checkpoints" / "step-000000001.pt.damaged").write_text("")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_a_bit, "weights.pth: w differs"),
        (change_a_checkpoint, "checkpoints/step-000000002.pt: model: w differs"),
        (repeat_a_row, "metrics.jsonl: 0 lines missing, 1 repeated, 4 in all"),
        (drop_a_row, "metrics.jsonl: 1 lines missing, 0 repeated, 2 in all"),
        (change_a_value, "metrics.jsonl: line 2 has other values"),
        (change_the_summary, "summary.json: after: rho2 differs"),
        (lose_the_weights, "cannot be compared: FileNotFoundError"),
        (leave_a_temporary_file, "file left over: checkpoints/.step-000000002.pt.tmp-17-abc"),
        (leave_a_checkpoint, "3 checkpoints, not 2"),
        (set_a_checkpoint_aside, "set aside without damage: checkpoints/step-000000001.pt.damaged"),
    ],
)
def test_each_difference_is_named(
    copy: Path, whole: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(copy)
    problems = differences(copy, whole)
    assert any(problem.startswith(expected) for problem in problems), problems


def test_a_damaged_checkpoint_may_be_set_aside(copy: Path, whole: Path) -> None:
    set_a_checkpoint_aside(copy)
    assert comparison.left_over(copy, whole, aside=1) == []


def test_a_lock_that_is_left_over(copy: Path, whole: Path) -> None:
    with (copy / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert comparison.left_over(copy, whole) == ["still locked: .lock"]
    assert comparison.left_over(copy, whole) == []


def test_an_evaluation_is_compared_byte_by_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.parquet").write_bytes(name.encode())
        (tmp_path / name / "summary.json").write_text(json.dumps({"rho2": 1, "runs": [name]}))
    problems = comparison.differences(tmp_path / "a", tmp_path / "b")
    assert problems == ["samples.parquet differs"]


def test_damage_to_the_newest_checkpoint(copy: Path, whole: Path) -> None:
    old, newest = files.numbered_checkpoints(copy)
    before = newest.read_bytes()
    assert " of byte " in files.flip_bit_of_newest_checkpoint(copy, 0.5)
    changed = newest.read_bytes()
    assert sum(a != b for a, b in zip(before, changed, strict=True)) == 1
    files.cut_newest_checkpoint(copy, 0.25)
    assert newest.read_bytes() == changed[: len(changed) // 4]
    assert old.read_bytes() == (whole / "checkpoints" / old.name).read_bytes()
    assert files.cut_newest_checkpoint(copy.parent, 0.5) == "no checkpoint yet"


def test_progress_of_a_run(copy: Path) -> None:
    assert files.progress(copy) == ""
    (copy / "progress.json").write_text('{"doing": "training", "done": 1}')
    assert files.progress(copy) == "training, step 2"
    assert files.num_rows(copy) == 3


def test_files_that_are_being_written(copy: Path) -> None:
    names = ("weights.pth", "progress.json")
    with atomic_write(copy / names[0]) as weights, atomic_write(copy / names[1]) as progress:
        weights.touch()
        progress.touch()
        assert files.written_files(copy) == ["weights.pth"]
    assert files.written_files(copy) == []
