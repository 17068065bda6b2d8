"""objective.targets reference: the net that a run starts from states the classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import DataConfig, ModelConfig
from pipeline.data import demo, index
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.models.build import build
from pipeline.models.weight_classes import recorded_classes
from tests.helpers.in_process import FINETUNE, in_process
from tests.helpers.runs import assert_same_weights, metrics
from tests.helpers.tiny import finetune, finished, kill_at_step

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a net after one clean epoch, which still makes mistakes."""
    folder = tmp_path_factory.mktemp("start") / "run"
    finished(folder, "--train.epochs", 0)
    return folder / "weights.pth"


def relabelled(path: Path, labels: np.ndarray, classes: list[str]) -> Path:
    """An index of the demo's training digits with other labels."""
    rows = pq.read_table(demo.prepare()["train"])
    position = rows.schema.get_field_index("label")
    rows = rows.set_column(position, "label", pa.array(labels.astype(np.int32)))
    archive = demo.prepare()["train"].parent / "train.tar"
    index.write(path, rows, archive.parent, classes, {archive.name: archive})
    return path


def of(start: Path, train: Path) -> tuple[object, ...]:
    return (
        *("--model.weights", start, "--train.pretrain_epochs", 0),
        *("--train.epochs", 1, "--data.train", train, "--data.val", "demo"),
        *("--data.crop_size", 28, "--data.resize_size", 28, "--data.channels", 1),
        *("--data.mean", "[0.1307]", "--data.std", "[0.3081]", "--data.random_crop", "false"),
        *("--data.hflip", "false", "--regularizer.lam", 15, "--optim.lr", 0.01),
    )


REFERENCE = ("--objective.targets", "reference")


def predictions(start: Path, train: Index) -> np.ndarray:
    """The classes that the net predicts for all training digits."""
    data = DataConfig(crop_size=28, resize_size=28, channels=1, mean=[0.1307], std=[0.3081])
    specs = evaluation_specs(train, np.arange(len(train)), data, len(train))
    (batch,) = Loader(train, specs, data, torch.device("cpu"), len(train), 1)
    config = ModelConfig(name="tests.helpers.nets:dropout_mlp", weights=str(start))
    with torch.no_grad():
        return build(config, 10).eval()(batch.images).argmax(dim=1).numpy()


def test_equal_to_training_on_the_predicted_labels(start: Path, tmp_path: Path) -> None:
    """Of pictures without labels, and the labels are those of a copy that does not change."""
    digits = index.read(str(demo.prepare()["train"]))
    predicted = predictions(start, digits)
    assert 0.02 < (predicted != digits.label).mean() < 0.9
    unlabelled = relabelled(tmp_path / "u.parquet", np.zeros(len(digits)), ["pictures"])
    by_hand = relabelled(tmp_path / "h.parquet", predicted, CLASSES)
    finished(tmp_path / "one", *of(start, unlabelled), *REFERENCE)
    finished(tmp_path / "other", *of(start, by_hand))
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    classes = recorded_classes(tmp_path / "one" / "weights.pth")
    assert classes is not None
    assert classes.identities == CLASSES
    assert metrics(tmp_path / "one", "train/accuracy") == metrics(
        tmp_path / "other", "train/accuracy"
    )


def test_resumed(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*of(start, demo.prepare()["train"]), *REFERENCE, "--checkpoint.every_steps", 1)
    finished(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "resumed", *options)
    assert "step 3, in" in finished(tmp_path / "resumed", *options).stdout
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_other_weights_are_refused_on_resuming(start: Path, tmp_path: Path) -> None:
    moved, folder = tmp_path / "moved.pth", tmp_path / "run"
    moved.write_bytes(start.read_bytes())
    options = (*of(moved, demo.prepare()["train"]), *REFERENCE)
    finished(folder, *options)
    state = torch.load(start, weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, moved)
    ended = finetune(folder, *options)
    assert ended.code == 2
    assert "model.weights" in ended.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--train.pretrain_epochs", 1, "--model.weights", "x.pth"),
            "train.pretrain_epochs must be 0 with objective.targets reference, got 1",
        ),
        ((), "model.weights must be given with objective.targets reference"),
        (
            ("--model.new_head", "true", "--model.weights", "x.pth"),
            "model.new_head must be false with objective.targets reference, got true",
        ),
    ],
)
def test_mistakes(options: tuple[object, ...], line: str, tmp_path: Path) -> None:
    common = ("--train.pretrain_epochs", 0, *options, *REFERENCE, "--output", tmp_path / "run")
    done = in_process(FINETUNE, *common)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
