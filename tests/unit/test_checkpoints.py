"""Checkpoints: which are kept, and which are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import (
    CheckpointConfig,
    FinetuneConfig,
    parse,
)
from pipeline.data.classes import Classes
from pipeline.errors import UserError
from pipeline.training.checkpoint import (
    Checkpoints,
    CheckpointState,
    DamagedCheckpoint,
    check,
    decoder_warning,
    load,
    write,
)
from pipeline.training.resume_point import resume_point


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
    for step in (5, 10, 15):
        kept.save(step, {"step": step}, best=step == 10)
    assert [path.name for path in kept.all()] == ["step-000000010.pt", "step-000000015.pt"]
    assert torch.load(kept.best_path, weights_only=True)["step"] == 10
    assert resume_point(Checkpoints(tmp_path / "new", CheckpointConfig()), "never", True) is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    write(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        write(path, {"step": lambda: None})  # fails half-way through the file
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no checkpoint of this program"):
        load(tmp_path / "x.pt")


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    config, classes = FinetuneConfig(), Classes(["cat", "dog"], ["n1", "n2"])
    path, state = Path("step.pt"), state_of(3) | {"classes": classes.to_dict()}
    check(path, state, config, "f", classes)
    with pytest.raises(UserError, match=r"data\.train: other classes: label 1 is 'n3', not 'n2'"):
        check(path, state, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))
    del state["classes"], state["config"]["data"]["check_classes"]  # of an earlier version
    check(path, state, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))


def test_a_checkpoint_of_a_run_with_another_decoder() -> None:
    """auto and the name of the decoder are the same where the pixels are; a move is warned of."""
    path, state = Path("step.pt"), state_of(3)
    named = replace(FinetuneConfig(), data=replace(FinetuneConfig().data, decoder="cpu"))
    with pytest.raises(UserError, match=r"data\.decoder: auto -> cpu"):
        check(path, state, named, "f", None, "cpu")  # of an earlier version
    assert decoder_warning(path, state, "gpu") == ""
    state["decoder"] = "cpu"
    check(path, state, named, "f", None, "cpu")
    assert decoder_warning(path, state, "cpu") == ""
    check(path, state, FinetuneConfig(), "f", None, "gpu")
    assert "on the CPU, this one does on the GPU" in decoder_warning(path, state, "gpu")
    assert "--data.decoder cpu keeps them" in decoder_warning(path, state, "gpu")
    state["decoder"] = "gpu"
    with pytest.raises(UserError, match=r"data\.decoder: auto -> cpu"):
        check(path, state, named, "f", None, "cpu")
    assert "keeps" not in decoder_warning(path, state, "cpu")


def state_of(step: int) -> CheckpointState:
    state: CheckpointState = {"config": parse.to_dict(FinetuneConfig()), "index": "f", "step": step}
    state |= {"model": {"w": torch.arange(20.0) + step}, "optimizer": {}, "scaler": {}}
    return state | {"history": [], "seconds": 0.0, "version": 1}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Checkpoints of the steps 5 and 10, and a best one of step 5."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep_last=3))
    for step in (5, 10):
        checkpoints.save(step, state_of(step), best=step == 5)
    return checkpoints


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(20.0).add(10).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def lack_the_history(path: Path) -> None:
    state = state_of(10)
    del state["history"]
    torch.save(state, path)


@pytest.mark.parametrize("damage", [cut, empty, flip_a_bit, lack_the_history])
def test_a_damaged_newest_checkpoint_is_set_aside(
    kept: Checkpoints, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = kept.all()[-1]
    damage(newest)
    data = newest.read_bytes()
    point = resume_point(kept, "auto", set_aside=True)
    assert point is not None
    assert point.path.name == "step-000000005.pt"
    assert torch.equal(point.state["model"]["w"], state_of(5)["model"]["w"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: the checkpoint {newest} ")
    assert line.endswith(
        "it is now step-000000010.pt.damaged, and step-000000005.pt is used instead"
    )
    assert newest.with_name("step-000000010.pt.damaged").read_bytes() == data
    assert kept.all() == [point.path]
    resume_point(kept, "auto", set_aside=True)
    assert capsys.readouterr().err == ""


def test_a_dry_run_renames_nothing(kept: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    cut(kept.all()[-1])
    point = resume_point(kept, "auto", set_aside=False)
    assert point is not None
    assert point.state["step"] == 5
    assert len(kept.all()) == 2
    assert "it is not used, and step-000000005.pt is used instead" in capsys.readouterr().err


def test_the_best_checkpoint_is_the_last_resort(
    kept: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for later starts, which find no numbered checkpoint."""
    for path in kept.all():
        cut(path)
    for _ in range(2):
        point = resume_point(kept, "auto", set_aside=True)
        assert point is not None
        assert point.path == kept.best_path
        assert kept.all() == []
    assert capsys.readouterr().err.count("best.pt is used instead") == 2, "once a checkpoint"
    with pytest.raises(UserError, match=r"resume is never, but .* holds checkpoints"):
        resume_point(kept, "never", set_aside=True)


def test_a_restart_uses_the_best_checkpoint_too(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in kept.all():
        cut(path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for _ in range(2):
        point = resume_point(kept, "never", set_aside=True)
        assert point is not None
        assert point.path == kept.best_path


def test_the_best_checkpoint_is_damaged_after_the_others(kept: Checkpoints) -> None:
    for path in kept.all():
        cut(path)
    resume_point(kept, "auto", set_aside=True)
    cut(kept.best_path)
    with pytest.raises(
        UserError, match=r"all checkpoints in .* are damaged \(best\.pt, step-000000005\.pt\.dam"
    ):
        resume_point(kept, "auto", set_aside=True)
    assert kept.best_path.exists()


def test_a_first_save_that_was_interrupted(tmp_path: Path) -> None:
    """It writes best.pt first; nothing was damaged, so the run starts anew."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    write(checkpoints.best_path, state_of(5))
    assert resume_point(checkpoints, "auto", set_aside=True) is None


def test_all_checkpoints_damaged(kept: Checkpoints) -> None:
    paths = [*kept.all(), kept.best_path]
    for path in paths:
        cut(path)
    with pytest.raises(
        UserError, match=r"all checkpoints in .* are damaged \(step-000000010\.pt, "
    ):
        resume_point(kept, "auto", set_aside=True)
    assert all(path.exists() for path in paths), "then the disk or the installation is at fault"


def test_the_only_checkpoint_damaged(kept: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    kept.best_path.unlink()
    kept.all()[0].unlink()
    cut(kept.all()[0])
    assert resume_point(kept, "auto", set_aside=True) is None
    assert "it is now step-000000010.pt.damaged, and the run starts anew" in capsys.readouterr().err


def test_a_checkpoint_that_the_user_names_is_not_replaced(kept: Checkpoints) -> None:
    newest = kept.all()[-1]
    cut(newest)
    with pytest.raises(UserError, match=r"step-000000010\.pt cannot be read"):
        resume_point(kept, str(newest), set_aside=True)
    assert newest.exists()


def test_a_file_that_cannot_be_opened_is_not_set_aside(kept: Checkpoints) -> None:
    newest = kept.all()[-1]
    newest.unlink()
    newest.symlink_to(newest)  # also root gets an error of the system
    with pytest.raises(UserError, match=r"step-000000010\.pt cannot be read \("):
        resume_point(kept, "auto", set_aside=True)
    assert newest.is_symlink()


def test_memory_that_runs_out_is_no_damage(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", run_out)
        with pytest.raises(MemoryError):
            resume_point(kept, "auto", set_aside=True)
    assert len(kept.all()) == 2


def test_every_bit_of_a_checkpoint_counts_or_changes_nothing(tmp_path: Path) -> None:
    """torch.save stores a CRC-32 of each record; the rest of the file describes the records."""
    path = tmp_path / "step.pt"
    write(path, state_of(10))
    whole = path.read_bytes()
    num_damaged = 0
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        try:
            state = load(path)
        except DamagedCheckpoint:
            num_damaged += 1
            continue
        expected = state_of(10)
        assert torch.equal(state.pop("model")["w"], expected.pop("model")["w"]), position
        assert state == expected, position
    assert num_damaged > 100


def test_an_old_checkpoint_without_checksums_is_read(kept: Checkpoints) -> None:
    newest = kept.all()[-1]
    torch.save(state_of(10), newest, _use_new_zipfile_serialization=False)
    point = resume_point(kept, "auto", set_aside=True)
    assert point is not None
    assert point.path == newest
