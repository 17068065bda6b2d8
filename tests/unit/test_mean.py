"""Mean images: made by tools/index.py, subtracted by the loader, part of the identity of a run."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig, EvaluationConfig, ModelConfig
from pipeline.data import demo, index
from pipeline.data.batches import evaluation_specs
from pipeline.data.convert import read_idx
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.mean_image import identity, mean_of
from pipeline.data.plan import BatchSpec, training_windows
from pipeline.errors import UserError
from pipeline.evaluation.attack_space import attack_view_of, data_options
from pipeline.models.build import build
from tests.helpers.images import broken_archive, encode, index_tar, picture
from tests.helpers.in_process import call, in_process
from tests.helpers.runs import SMALL, expect_error

CPU = torch.device("cpu")
DIGITS = DataConfig(
    crop_size=28, resize_size=28, channels=1, mean=[0.0], std=[1 / 255], random_crop=False
)


@pytest.fixture(scope="module")
def digits() -> Index:
    return index.read(str(demo.prepare()["val"]))


@pytest.fixture(scope="module")
def mean(digits: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mean") / "mean.npy"
    argv = ("--crop", 28, "--resize", 28, "--channels", 1)
    done = in_process("tools/index.py", "mean", digits.path, "--out", path, *argv)
    assert done.returncode == 0, done.stderr
    assert "the mean of 2,000 images, 1 x 28 x 28" in done.stdout
    return path


def loaded(digits: Index, config: DataConfig, specs: list[BatchSpec] | None = None) -> torch.Tensor:
    specs = specs or list(evaluation_specs(digits, np.arange(50), config, 50))
    (batch,) = Loader(digits, specs, config, CPU, 50, threads=2)
    return batch.images


def test_the_mean_is_that_of_the_images(mean: Path) -> None:
    images = read_idx(Path(demo.__file__).parent / "digits" / "val-images.idx3-ubyte.gz")
    stored = np.load(mean)
    assert (stored.shape, stored.dtype) == ((1, 28, 28), np.float32)
    np.testing.assert_allclose(stored[0], images.mean(axis=0) / 255, atol=1e-6)


def test_the_loader_subtracts_it_and_flips_it_with_the_image(digits: Index, mean: Path) -> None:
    config = dataclasses.replace(DIGITS, mean=str(mean), hflip=True)
    pixels, shift = loaded(digits, DIGITS), 255 * torch.from_numpy(np.load(mean))
    torch.testing.assert_close(loaded(digits, config), pixels - shift, atol=1e-4, rtol=0)
    rows = np.arange(50)
    windows = training_windows(digits.width[rows], digits.height[rows], 0, 0, 0, config)
    assert 0 < windows.mirror.sum() < 50
    flipped = loaded(digits, config, [BatchSpec(rows, windows)])
    mirrored = torch.from_numpy(windows.mirror.astype(bool)).view(-1, 1, 1, 1)
    expected = torch.where(mirrored, (pixels - shift).flip(3), pixels - shift)
    torch.testing.assert_close(flipped, expected, atol=1e-4, rtol=0)


def test_in_the_space_of_pixels_the_net_subtracts_it(digits: Index, mean: Path) -> None:
    torch.manual_seed(0)
    net = build(ModelConfig(name="mlp", init_std=0.01), 10)
    config = dataclasses.replace(DIGITS, mean=str(mean))
    space = EvaluationConfig(space="pixels")
    pixels = loaded(digits, data_options(config, space))
    assert 0 <= pixels.min() < pixels.max() <= 1
    logits = attack_view_of(net, config, space, CPU)(pixels)
    torch.testing.assert_close(logits, net(loaded(digits, config)), atol=1e-4, rtol=1e-4)


def test_weights_are_drawn_as_asked() -> None:
    torch.manual_seed(0)
    net = build(ModelConfig(name="lenet", init_std=0.01), 10)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1)
    with pytest.raises(ValueError, match=r"init_std must be above 0"):
        ModelConfig(init_std=0.0)


def test_mistakes(mean: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            mean_of(dataclasses.replace(DIGITS, mean=str(path), **options))

    refused(tmp_path / "no.npy", r"data\.mean: no file .*tools/index\.py mean")
    refused(mean, r"not an image of the shape \(1, 32, 32\)", crop_size=32, resize_size=32)
    (tmp_path / "text.npy").write_text("0.5")
    refused(tmp_path / "text.npy", "is not an .npy file of numbers")
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    refused(tmp_path / "objects.npy", "is not an .npy file of numbers")
    np.save(tmp_path / "large.npy", 255 * np.load(mean))
    refused(tmp_path / "large.npy", "with pixels from 0 to 1")
    with pytest.raises(ValueError, match=r"mean must be 3 numbers.*or a \.npy file"):
        DataConfig(mean="mean.png")


@pytest.mark.slow
def test_runs_know_it_by_its_content(mean: Path, tmp_path: Path) -> None:
    here, folder = tmp_path / "here.npy", tmp_path / "run"
    shutil.copyfile(mean, here)
    data = ("--data.std", "[0.5]", "--train.epochs", 0, "--train.pretrain_epochs", 1)
    argv = (*SMALL, "--model.name", "mlp", *data, "--output", folder)
    done = in_process("pipeline/finetune.py", *argv, "--data.mean", here)
    assert done.returncode == 0, done.stderr
    moved = here.rename(tmp_path / "moved.npy")
    done = in_process("pipeline/finetune.py", *argv, "--data.mean", moved)
    assert "resuming from" in done.stdout, done.stderr
    np.save(tmp_path / "other.npy", np.load(moved) / 2)
    line = expect_error(in_process, *argv, "--data.mean", tmp_path / "other.npy")
    assert "data.mean: other images, labels or mean image than before" in line

    config = ("--config", folder / "config.yaml", "--model.weights", folder / "weights.pth")
    evaluate_options = (*config, "--evaluation.num_images", 20, "--output", tmp_path / "evaluation")
    done = in_process("pipeline/evaluate.py", *evaluate_options, "--data.mean", moved)
    assert done.returncode == 0, done.stderr
    (manifest,) = (tmp_path / "evaluation" / "results").glob("*/manifest.json")
    recorded_mean = json.loads(manifest.read_text())["identity"]["input"]["mean"]
    assert recorded_mean == identity(dataclasses.replace(DIGITS, mean=str(moved)))
    moved.unlink()  # pictures need the copy alone
    sheet = ("figures", "sheet", tmp_path / "evaluation", "--out", tmp_path / "sheet")
    assert in_process("tools/report.py", *sheet).returncode == 0


def test_no_image_decodes(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    index_tar(path, {"a/1.jpg": encode(picture(60, 50, 1), "JPEG")})
    path.write_bytes(bytes(path.stat().st_size))
    index = path.with_suffix(".parquet")
    mean = ("mean", index, "--out", tmp_path / "m.npy", "--crop", 8, "--resize", 8)
    for argv in (mean, ("show", index, "--sheet", tmp_path / "sheet.png")):
        ended = call("tools/index.py", *argv)
        assert ended.code == 2
        assert "decodes; check the archives" in ended.stderr.splitlines()[-1]
    assert [file.suffix for file in tmp_path.iterdir()].count(".npy") == 0


def test_images_that_do_not_decode_are_left_out_and_named(tmp_path: Path) -> None:
    photos = broken_archive(tmp_path)
    argv = ("mean", photos.path, "--out", tmp_path / "m.npy", "--crop", 8, "--resize", 8)
    ended = call("tools/index.py", *argv)
    assert ended.code == 0
    assert "the mean of 28 images" in ended.stdout
    assert "left out c/11.jpg: it does not decode" in ended.stderr
    assert "--data.on_error" not in ended.stderr  # an option of another program
