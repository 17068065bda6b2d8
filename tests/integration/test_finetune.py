"""pipeline/finetune.py as a user runs it: real processes, real ranks, real files."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.data import demo
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.runs import ROOT, SCRIPT, SMALL, Run, expect_error, metrics, weights


def test_the_default_reaches_its_goal_on_two_ranks(run: Run, tmp_path: Path) -> None:
    """The README's first command, whole."""
    begin = time.monotonic()
    done = run(SCRIPT, "--output", tmp_path / "demo", ranks=2)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 240
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


def test_what_a_run_leaves_behind(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == 48
    assert [entry["step"] for entry in summary["history"]] == [24, 36, 48]
    assert summary["before"] == summary["history"][0]
    assert summary["definition"]["num_candidates"] == 10
    names = sorted(p.name for p in (undisturbed / "checkpoints").iterdir())
    assert [n for n in names if n.startswith("step")] == ["step-000000045.pt", "step-000000048.pt"]
    assert "best.pt" in names
    losses = metrics(undisturbed, "train/loss")
    assert sorted(losses) == list(range(1, 49))
    rho2 = metrics(undisturbed, "train/rho2")
    assert sorted(rho2) == list(range(25, 49))
    reference = torch.load(undisturbed / "reference.pth", weights_only=True)
    assert not torch.equal(reference["1.weight"], weights(undisturbed)["1.weight"])


def test_tensorboard_shows_the_same_numbers(undisturbed: Path) -> None:
    board = EventAccumulator(str(undisturbed / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()
    wanted = {"loss", "cross_entropy", "regularizer", "rho2", "iterations", "flipped", "accuracy"}
    wanted |= {"lr", "images_per_second", "data_wait", "peak_memory_mib"}
    assert {f"train/{name}" for name in wanted} <= set(tags["scalars"])
    assert {"evaluation/accuracy", "evaluation/rho2"} <= set(tags["scalars"])
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    recorded = metrics(undisturbed, "train/loss")
    assert shown.keys() == recorded.keys()
    assert all(shown[step] == pytest.approx(recorded[step], rel=1e-6) for step in shown)
    panels = board.Images("perturbations")
    assert [panel.step for panel in panels] == [24, 36, 48]
    assert panels[0].width > 300
    assert any("hparams" in name for name in board.summary_metadata)


def test_a_loss_that_is_not_finite_stops_all_ranks(run: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--model.name", "tests.helpers.nets:exploding", "--output", tmp_path / "run")
    line = expect_error(run, *options, ranks=2)
    assert "not finite in step 1, for 500 images" in line
    assert ".png" in line  # ids
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_a_diverging_run_keeps_its_last_good_checkpoint(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = expect_error(run, *SMALL, "--train.pretrain_lr", 1e6, "--output", folder)
    assert "not finite in step" in line
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in state["model"].values()), path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--train.batch_size", 501, "--train.gradient_accumulation_steps", 2),
            "501 is not divisible by 1 ranks",
        ),
        (("--runtime.device", "cuda"), "torch sees no GPU"),
        (("--model.weights", "nothing.pth"), "model.weights: no file nothing.pth"),
        (("--model.name", "resnet18"), "does not take images of 1 x 28 x 28"),
        (("--model.num_classes", 4), "labels lie outside the net's 4 classes"),
        (("--output", "/proc/nothing"), "output: /proc/nothing cannot be written"),
        (("--resume", "nowhere.pt"), "resume: no file nowhere.pt"),
        (("--optim.lr", "fast"), "optim.lr"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, options: tuple, words: str) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert words in expect_error(run, "--output", tmp_path / "run", *options)


def test_an_image_that_breaks_during_training(run: Run, tmp_path: Path) -> None:
    members = {
        f"{k % 2}/{k:03d}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(60)
    }
    good = index_tar(tmp_path / "photos.tar", members)
    data = bytearray((tmp_path / "photos.tar").read_bytes())
    start = int(good.offset[17])
    data[start : start + int(good.length[17])] = bytes(int(good.length[17]))
    (tmp_path / "photos.tar").write_bytes(data)
    name = good.id(17)
    options = (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.train", good.path),
        *("--data.val", demo.prepare()["val"], "--train.epochs", 1),
        *("--train.batch_size", 20, "--train.pretrain_epochs", 1, "--evaluation.num_images", 20),
        *("--model.num_classes", 10, "--output", tmp_path / "run"),
        *("--data.check_classes", "false"),
    )
    assert name in expect_error(run, *options, ranks=2)
    done = run(SCRIPT, *options, "--data.on_error", "skip", ranks=2)
    assert done.returncode == 0, done.stderr
    assert f"left out {name}" in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped"] == [name]
    evaluation = (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.val", good.path),
        *("--model.num_classes", 2, "--output", tmp_path / "e"),
    )
    assert name in expect_error(run, *evaluation, script="pipeline/evaluate.py")
    done = run("pipeline/evaluate.py", *evaluation, "--data.on_error", "skip")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["skipped"] == [name]
    assert (summary["num_samples"], summary["num_skipped"]) == (59, 1)


def test_dry_run_says_what_would_run_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run(SCRIPT, "--output", tmp_path / "run", "--dry_run", "true")
    assert done.returncode == 0, done.stderr
    assert "6,000 images to train on, 2,000 held out" in done.stdout
    assert "1500 clean steps, then 720 with Deep Defense" in done.stdout
    assert not (tmp_path / "run").exists()


def test_half_precision_training(run: Run, tmp_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        folder = tmp_path / precision
        done = run(SCRIPT, *SMALL, "--runtime.precision", precision, "--output", folder)
        assert done.returncode == 0, done.stderr
        losses = metrics(folder, "train/loss")
        assert np.isfinite(list(losses.values())).all()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["after"]["rho2"] > summary["before"]["rho2"]
    assert min(metrics(tmp_path / "fp16", "train/loss_scale").values()) >= 1
