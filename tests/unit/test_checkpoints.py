"""Checkpoints: which are kept, and which are refused."""

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
from pipeline.training.checkpoint import Checkpoints, read, write


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
    for step in (5, 10, 15):
        kept.save(step, {"step": step}, best=step == 10)
    assert [path.name for path in kept.all()] == ["step-000000010.pt", "step-000000015.pt"]
    assert torch.load(kept.best_path, weights_only=True)["step"] == 10
    assert kept.find("auto") == kept.all()[-1]
    assert Checkpoints(tmp_path / "new", CheckpointConfig()).find("never") is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    write(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        write(path, {"step": lambda: None})  # fails half-way through the file
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no checkpoint of this program"):
        read(tmp_path / "x.pt", FinetuneConfig(), "")


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    config, classes = FinetuneConfig(), Classes(["cat", "dog"], ["n1", "n2"])
    state: dict = {"version": 1, "config": parse.to_dict(config), "index": "f", "step": 3}
    state |= {"model": {}, "optimizer": {}, "scaler": {}, "history": [], "seconds": 0.0}
    path = tmp_path / "step.pt"
    torch.save(state | {"classes": classes.to_dict()}, path)
    assert read(path, config, "f", classes)["step"] == 3
    with pytest.raises(UserError, match=r"data\.train: other classes: label 1 is 'n3', not 'n2'"):
        read(path, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))
    del state["config"]["data"]["check_classes"]  # made before classes were recorded
    torch.save(state, path)
    assert read(path, config, "f", Classes(["cat", "fox"], ["n1", "n3"]))["step"] == 3
