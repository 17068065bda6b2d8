"""Inputs of pipeline/evaluate.py: nets, data, and mistakes."""

from pathlib import Path

import pytest
import torch

from tests.helpers.evaluations import FGS, results
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.in_process import EVALUATE, in_process, succeed
from tests.helpers.runs import (
    ROOT,
    Run,
    expect_error,
)


@pytest.mark.parametrize(
    ("num_images", "ranks"), [(8, 0), pytest.param(150, 2, marks=pytest.mark.slow)]
)
def test_squeezenet_on_ilsvrc_out_of_the_box(
    run: Run,
    ilsvrc_val: Path,
    squeezenet_weights: Path,
    tmp_path: Path,
    num_images: int,
    ranks: int,
) -> None:
    options = (
        *("--data.val", ilsvrc_val, "--model.name", "squeezenet1_1"),
        *("--model.weights", squeezenet_weights, "--evaluation.batch_size", 25),
        *("--evaluation.num_images", num_images, "--output", tmp_path),
    )
    if ranks:
        done = run(EVALUATE, *options, *FGS, ranks=ranks)
    else:
        done = in_process(EVALUATE, *options, "--evaluation.attack.candidate_search", "pruned")
    assert done.returncode == 0, done.stderr
    summary, rows = results(tmp_path)
    assert len(rows) == summary["num_samples"] == num_images
    assert summary["top5_accuracy"] >= 0.75
    if ranks:
        assert summary["accuracy"] >= 0.55
        assert 8e-4 < summary["rho2"] < 1.1e-3
        assert summary["num_unflipped"] <= 2
        assert 2e-4 < summary["fgs"]["eps_ref"] < 1e-3
    else:
        assert summary["accuracy"] >= 0.4
        assert 5e-4 < summary["rho2"] < 2e-3


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    argv = ("--output", tmp_path / "x", "--dry_run", "true", "--shard", "1/3", *FGS)
    output = succeed(EVALUATE, *argv)
    assert "shard 1/3: 667 images" in output
    assert "667 of 667 images to evaluate" in output
    assert "FGS at 2 eps, eps_ref" in output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "-1/3"), "shard"),
        (("--shard", "1"), "shard must be i/n"),
        (("--evaluation.clip", "true"), "evaluation.clip must be false"),
        (("--evaluation.attack.norm", "1"), "norm must be above 1"),
        (("--evaluation.fgs.eps", "[-1]"), "evaluation.fgs.eps"),
        (("--evaluation.fgs.reference", "nowhere"), "nowhere/summary.json holds no eps_ref"),
        (("--evaluation.num_images", 0), "evaluation.num_images"),
    ],
)
def test_mistakes(tmp_path: Path, options: tuple, message: str) -> None:
    line = expect_error(in_process, "--output", tmp_path / "x", *options, script=EVALUATE)
    assert message in line


def test_mistakes_in_a_process(run: Run, tmp_path: Path) -> None:
    line = expect_error(run, "--output", tmp_path / "x", "--shard", "3/3", script=EVALUATE)
    assert "shard must be i/n with i from 0 to n - 1, got 3/3" in line


def test_few_classes(tmp_path: Path) -> None:
    for number, message in ((1, "has one class"), (3, "q 3")):
        members = {
            f"{k % number}/{k}.png": encode(picture(28, 28, k).convert("L"), "PNG")
            for k in range(6)
        }
        photos = index_tar(tmp_path / f"{number}.tar", members)
        options = (
            *("--config", ROOT / "configs" / "demo.yaml", "--data.val", photos.path),
            *("--output", tmp_path / str(number)),
        )
        if number == 1:
            assert message in expect_error(in_process, *options, script=EVALUATE)
        else:
            assert message in succeed(EVALUATE, *options)
            assert results(tmp_path / "3")[0]["definition"]["num_candidates"] == 3


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_ones_own.py").write_text(
        "import torch\n\n\ndef net():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(module.state_dict(), tmp_path / "w.pth")
    options = ("--model.name", "net_of_ones_own:net", "--model.weights", tmp_path / "w.pth")
    space = ("--evaluation.space", "pixels", "--evaluation.clip", "true", "--data.std", "[0.25]")
    succeed(EVALUATE, *options, *space, "--evaluation.num_images", 50, "--output", "out")
    summary, rows = results(tmp_path / "out")
    assert summary["num_samples"] == 50
    assert summary["input"]["std"] == [0.25]
    assert "pixels in [0, 1]" in summary["definition"]["space"]
    assert max(row["image_norm"] for row in rows.values()) < 28  # of pixels


def test_an_archive_that_changed(tmp_path: Path) -> None:
    members = {f"{k}/{k}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(10)}
    photos = index_tar(tmp_path / "photos.tar", members)
    with (tmp_path / "photos.tar").open("ab") as file:
        file.write(bytes(512))
    config = ("--config", ROOT / "configs" / "demo.yaml", "--data.val", photos.path)
    line = expect_error(in_process, *config, "--output", tmp_path / "x", script=EVALUATE)
    assert "photos.tar is longer than its index" in line
    assert "tools/index.py" in line
