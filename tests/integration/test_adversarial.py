"""tools/adversarial.py: examples are stored to the last bit, read back, trained with."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig, TrainConfig
from pipeline.data import array_tars, demo, index
from pipeline.data.batches import TrainingPlan, evaluation_specs
from pipeline.data.loader import Loader
from pipeline.errors import UserError
from pipeline.models.paper_nets import mlp
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.in_process import in_process, succeed
from tests.helpers.runs import Run, expect_error

SCRIPT = "tools/adversarial.py"
DATA = DataConfig(
    crop_size=28,
    resize_size=28,
    channels=1,
    mean=[0.1307],
    std=[0.3081],
    random_crop=False,
    hflip=False,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    argv = ("--model.name", "mlp", "--train.pretrain_epochs", 2, "--train.epochs", 0)
    succeed("pipeline/finetune.py", *argv, "--output", folder)
    return folder


def options(reference: Path, folder: Path) -> tuple:
    return (
        *("--config", reference / "config.yaml", "--model.weights", reference / "weights.pth"),
        *("--evaluation.num_images", 150, "--evaluation.batch_size", 32, "--output", folder),
    )


def loaded(index_read: index.Index, rows: np.ndarray | None = None) -> torch.Tensor:
    rows = np.arange(len(index_read)) if rows is None else rows
    loader = Loader(index_read, evaluation_specs(index_read, rows, DATA, 32), DATA, CPU, 32, 2)
    return torch.cat([batch.images.clone() for batch in loader])


def arrays_of(folder: Path) -> dict[int, np.ndarray]:
    arrays = {}
    for path in folder.glob("*.tar"):
        with path.open("rb") as file:
            for member in array_tars.members(path):
                file.seek(member.offset_data)
                arrays[int(Path(member.name).stem)] = np.load(file, allow_pickle=False)
    return arrays


@pytest.fixture(scope="module")
def made(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    output = succeed(SCRIPT, *options(reference, folder))
    assert "150 examples; 0 not flipped" in output
    return folder


def test_examples_fool_the_net_again_after_reading_back(reference: Path, made: Path) -> None:
    examples = index.read(str(made / "index.parquet"))
    assert examples.is_array.all()
    images, stored = loaded(examples), arrays_of(made)
    source = index.read(str(demo.prepare()["val"]))
    rows = {source.id(row): row for row in source.subset(150).tolist()}
    source_rows = np.array([rows[examples.id(n).removeprefix("adversarial/")] for n in range(150)])
    for image, row in zip(images.numpy(), source_rows.tolist(), strict=True):
        np.testing.assert_array_equal(image, stored[row])
    np.testing.assert_array_equal(examples.label, source.label[source_rows])
    net = mlp()
    net.load_state_dict(torch.load(reference / "weights.pth", weights_only=True))
    clean = loaded(source, source_rows)
    with torch.no_grad():
        assert (net(images).argmax(dim=1) != net(clean).argmax(dim=1)).all()
    ratio = (images - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    assert 0.01 < ratio.mean() < 0.3


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_and_resumed(
    run: Run, reference: Path, made: Path, tmp_path: Path, ranks: int
) -> None:
    folder = shutil.copytree(made, tmp_path / "cut")
    path = folder / "rank0.tar"
    last = array_tars.members(path)[40]
    os.truncate(path, last.offset_data + 100)  # as a kill leaves it
    assert len(array_tars.stored(folder)) == 40
    call = run if ranks else in_process
    done = call(SCRIPT, *options(reference, folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    whole, again = arrays_of(made), arrays_of(folder)
    assert whole.keys() == again.keys()
    for row, values in whole.items():
        np.testing.assert_allclose(again[row], values, atol=1e-6)


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_images_that_do_not_decode_are_counted_apart(
    run: Run, reference: Path, tmp_path: Path, ranks: int
) -> None:
    members = {
        f"{k % 2}/{k:03d}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(20)
    }
    photos = index_tar(tmp_path / "photos.tar", members)
    data = bytearray((tmp_path / "photos.tar").read_bytes())
    for row in (3, 7, 8):
        begin, length = int(photos.offset[row]), int(photos.length[row])
        data[begin : begin + length] = bytes(length)
    (tmp_path / "photos.tar").write_bytes(data)
    argv = (*options(reference, tmp_path / "made"), "--data.val", photos.path)
    argv += ("--data.on_error", "skip", "--model.num_classes", 10, "--data.check_classes", "false")
    for _ in range(2):  # the second time no other image is left
        done = (run if ranks else in_process)(SCRIPT, *argv, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert "17 examples; 0 not flipped; 3 did not decode" in done.stdout


def test_other_examples_or_another_space_are_refused(
    reference: Path, made: Path, tmp_path: Path
) -> None:
    other = ("--evaluation.space", "pixels", "--data.val", made / "index.parquet")
    line = expect_error(
        in_process, *options(reference, tmp_path / "x"), *other, script="pipeline/evaluate.py"
    )
    assert "evaluation.space: the arrays of" in line
    other = ("--data.mean", "[0.5]")
    folder = shutil.copytree(made, tmp_path / "made")
    line = expect_error(in_process, *options(reference, folder), *other, script=SCRIPT)
    assert "contains other examples (input.mean" in line


@pytest.mark.slow
def test_images_and_examples_are_trained_with_together(made: Path, tmp_path: Path) -> None:
    both, source = tmp_path / "both.parquet", demo.prepare()["train"]
    argv = ("join", source, made / "index.parquet", "--out", both)
    assert "6,150 images" in succeed("tools/index.py", *argv)
    joined, images = index.read(str(both)), index.read(str(source))
    assert joined.is_array.sum() == 150
    assert joined.ids.to_pylist()[:6000] == images.ids.to_pylist()
    # Batches of images, of arrays and of both, mirrored by the plan.
    data = replace(DATA, hflip=True)
    plan = TrainingPlan(joined, data, TrainConfig(batch_size=50), 0, 1)
    stored = loaded(index.read(str(made / "index.parquet")))
    specs = list(plan.specs(0, plan.steps_per_epoch))
    seen = mirrored = 0
    for batch, spec in zip(Loader(joined, iter(specs), data, CPU, 50, 2), specs, strict=True):
        for position in np.flatnonzero(joined.is_array[batch.rows]):
            expected = stored[batch.rows[position] - 6000]
            if spec.windows.mirror[position]:
                expected, mirrored = expected.flip(2), mirrored + 1
            assert torch.equal(batch.images[position], expected)
            seen += 1
    assert seen == 150
    assert 40 < mirrored < 110
    assert torch.equal(loaded(joined, np.arange(40)), loaded(images, np.arange(40)))
    argv = ("--data.train", both, "--data.val", demo.prepare()["val"], "--data.crop_size", 28)
    argv += ("--data.resize_size", 28, "--data.channels", 1, "--data.mean", "[0.1307]")
    argv += ("--data.std", "[0.3081]", "--data.random_crop", "false", "--data.hflip", "false")
    argv += ("--model.name", "mlp", "--objective.method", "clean", "--train.batch_size", 410)
    argv += ("--train.pretrain_epochs", 0, "--train.epochs", 1, "--evaluation.num_images", 100)
    output = succeed("pipeline/finetune.py", *argv, "--output", tmp_path / "run")
    assert "15 with the cross-entropy only" in output
    with pytest.raises(UserError, match=r"its arrays are not of the shape \(1, 24, 24\)"):
        Loader(joined, iter(specs), replace(DATA, crop_size=24), CPU, 50, 2)
