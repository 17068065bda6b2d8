"""pipeline/finetune.py as a user runs it: real processes, real ranks, real files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.data import demo
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.in_process import in_process, succeed
from tests.helpers.runs import ROOT, SCRIPT, SMALL, Run, expect_error, metrics, weights
from tests.helpers.tiny import finetune


@pytest.mark.slow
def test_the_default_reaches_its_goal_on_two_ranks(run: Run, tmp_path: Path) -> None:
    """The README's first command, whole."""
    done = run(SCRIPT, "--output", tmp_path / "demo", ranks=2)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    assert before["num_samples"] == after["num_samples"] == 2000
    assert before["accuracy"] > 0.92
    assert after["rho2"] >= 1.4 * before["rho2"]
    assert after["accuracy"] >= before["accuracy"]
    assert summary["ranks"] == 2
    assert summary["steps"] == 37 * 60
    assert summary["images_per_second"] > 0
    assert "torch" in summary["versions"]
    assert f"{after['accuracy']:.2%}" in done.stdout


def test_what_a_run_leaves_behind(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == 48
    assert [entry["step"] for entry in summary["history"]] == [24, 36, 48]
    assert summary["before"] == summary["history"][0]
    assert summary["definition"]["num_candidates"] == 10
    names = sorted(p.name for p in (uninterrupted / "checkpoints").iterdir())
    assert [n for n in names if n.startswith("step")] == ["step-000000045.pt", "step-000000048.pt"]
    assert "best.pt" in names
    losses = metrics(uninterrupted, "train/loss")
    assert sorted(losses) == list(range(1, 49))
    rho2 = metrics(uninterrupted, "train/rho2")
    assert sorted(rho2) == list(range(25, 49))
    reference = torch.load(uninterrupted / "reference.pth", weights_only=True)
    assert not torch.equal(reference["1.weight"], weights(uninterrupted)["1.weight"])


def test_tensorboard_shows_the_same_numbers(uninterrupted: Path) -> None:
    board = EventAccumulator(str(uninterrupted / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()
    wanted = {"loss", "cross_entropy", "regularizer", "rho2", "iterations", "flipped", "accuracy"}
    wanted |= {"lr", "images_per_second", "data_wait", "peak_memory_mib"}
    assert {f"train/{name}" for name in wanted} <= set(tags["scalars"])
    assert {"evaluation/accuracy", "evaluation/rho2"} <= set(tags["scalars"])
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    recorded = metrics(uninterrupted, "train/loss")
    assert shown.keys() == recorded.keys()
    assert all(shown[step] == pytest.approx(recorded[step], rel=1e-6) for step in shown)
    panels = board.Images("perturbations")
    assert [panel.step for panel in panels] == [24, 36, 48]
    assert panels[0].width > 300
    assert any("hparams" in name for name in board.summary_metadata)


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    options = (*SMALL, "--train.pretrain_lr", 1e6, "--checkpoint.every_steps", 1)
    line = expect_error(in_process, *options, "--output", tmp_path)
    step = int(re.search(r"not finite in step (\d+)", line)[1])
    paths = sorted((tmp_path / "checkpoints").glob("*.pt"))
    assert paths[-1].name == f"step-{step - 1:09}.pt"
    for path in paths:
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in state["model"].values()), path


MISTAKES = [
    (
        ("--train.batch_size", 501, "--train.gradient_accumulation_steps", 2),
        "501 is not divisible by 1 ranks",
    ),
    (("--runtime.device", "cuda"), "torch sees no GPU"),
    (("--model.weights", "nothing.pth"), "model.weights: no file nothing.pth"),
    (("--model.name", "resnet18"), "does not take images of 1 x 28 x 28"),
    (("--model.num_classes", 4), "labels are outside the net's 4 classes"),
    (("--output", "/proc/nothing"), "output: /proc/nothing cannot be written"),
    (("--resume", "nowhere.pt"), "resume: no file nowhere.pt"),
    (("--optim.lr", "fast"), "optim.lr"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(tmp_path: Path, options: tuple, message: str) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in expect_error(in_process, "--output", tmp_path / "run", *options)


def test_mistakes_in_a_process(run: Run, tmp_path: Path) -> None:
    options = ("--output", tmp_path / "run", "--model.num_classes", 4)
    assert "labels are outside the net's 4 classes" in expect_error(run, *options)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An index of 60 images of which one does not decode, and that one's name."""
    folder = tmp_path_factory.mktemp("broken")
    members = {
        f"{k % 2}/{k:03d}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(60)
    }
    index = index_tar(folder / "photos.tar", members)
    data = bytearray((folder / "photos.tar").read_bytes())
    begin = int(index.offset[17])
    data[begin : begin + int(index.length[17])] = bytes(int(index.length[17]))
    (folder / "photos.tar").write_bytes(data)
    return index.path, index.id(17)


def on_broken(path: str) -> tuple:
    return (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.train", path),
        *("--data.val", demo.prepare()["val"], "--train.epochs", 1),
        *("--train.batch_size", 20, "--train.pretrain_epochs", 1, "--evaluation.num_images", 20),
        *("--model.num_classes", 10, "--data.check_classes", "false"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_an_image_that_breaks_during_training(
    run: Run, broken: tuple[str, str], tmp_path: Path, ranks: int
) -> None:
    path, name = broken
    options = (*on_broken(path), "--output", tmp_path)
    if not ranks:
        assert name in expect_error(in_process, *options)
    call = run if ranks else in_process
    done = call(SCRIPT, *options, "--data.on_error", "skip", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"left out {name}" in done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped"] == [name]


def test_an_image_that_breaks_during_an_evaluation(broken: tuple[str, str], tmp_path: Path) -> None:
    path, name = broken
    options = (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.val", path),
        *("--model.num_classes", 2, "--output", tmp_path),
    )
    assert name in expect_error(in_process, *options, script="pipeline/evaluate.py")
    succeed("pipeline/evaluate.py", *options, "--data.on_error", "skip")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped"] == [name]
    assert (summary["num_samples"], summary["num_skipped"]) == (59, 1)
    before = (tmp_path / "samples.parquet").read_bytes()
    succeed("pipeline/evaluate.py", *options, "--data.on_error", "skip")  # only the broken one left
    assert (tmp_path / "samples.parquet").read_bytes() == before
    again = json.loads((tmp_path / "summary.json").read_text())
    assert (again["num_samples"], again["num_skipped"], again["skipped"]) == (59, 1, [name])


def test_no_image_of_an_evaluation_decodes(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    index_tar(path, {"a/1.jpg": encode(picture(60, 50, 1), "JPEG")})
    path.write_bytes(bytes(path.stat().st_size))
    options = ("--data.val", path.with_suffix(".parquet"), "--model.name", "lenet")
    options += ("--data.channels", 1, "--data.crop_size", 28, "--data.resize_size", 28)
    options += ("--data.mean", "[0]", "--data.std", "[1]", "--data.on_error", "skip")
    options += ("--model.num_classes", 10, "--output", tmp_path / "out")
    line = expect_error(in_process, *options, script="pipeline/evaluate.py")
    assert "none of 1 images decodes; check the archives" in line
    line = expect_error(
        in_process, *options, "--evaluation.diagnostics", "false", script="pipeline/evaluate.py"
    )
    assert "contains no results yet" in line


def test_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    output = succeed(SCRIPT, "--output", tmp_path / "run", "--dry_run", "true")
    assert "6,000 images to train on, 2,000 held out" in output
    assert "1500 clean steps, then 720 with Deep Defense" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_half_precision_training(tmp_path: Path, precision: str) -> None:
    options = ("--train.epochs", 1, "--log.every_steps", 1, "--runtime.precision", precision)
    ended = finetune(tmp_path, *options)
    assert ended.code == 0, ended.stderr
    assert np.isfinite(list(metrics(tmp_path, "train/loss").values())).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["after"]["rho2"] > summary["before"]["rho2"]
    if precision == "fp16":
        assert min(metrics(tmp_path, "train/loss_scale").values()) >= 1
