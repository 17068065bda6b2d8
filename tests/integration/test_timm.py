"""Nets of timm: fine-tuned, resumed, evaluated, and their weights read by timm alone."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.data.index import Index
from pipeline.models.build import build
from tests.helpers.exports import export, loaded_net
from tests.helpers.in_process import EVALUATE, FINETUNE, succeed
from tests.helpers.runs import assert_same_weights
from tests.helpers.tiny import kill_at_step

timm: Any = pytest.importorskip("timm", reason="needs the package timm (extra timm)")

# The side of its images in pixels, and the options by which plain timm builds the net for it.
NETS = {
    "resnet18": (32, {}),
    "convnext_atto.d2_in1k": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
}
FASTEST = ("vit_tiny_patch16_224", "unrolled")
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case != FASTEST))
    for case in itertools.product(NETS, ("unrolled", "boundary"))
]


def options(name: str, photos: Index) -> tuple[object, ...]:
    size, _ = NETS[name]
    return (
        *("--model.name", f"timm:{name}", "--data.train", photos.path, "--data.val", photos.path),
        *("--data.crop_size", size, "--data.preprocessing", "auto"),
        *("--evaluation.num_images", 4, "--evaluation.attack.max_iterations", 3),
    )


def training(gradient: str) -> tuple[object, ...]:
    return (
        *("--regularizer.gradient", gradient, "--train.epochs", 1, "--train.pretrain_epochs", 0),
        *("--train.batch_size", 20, "--checkpoint.every_steps", 1, "--log.panel_images", 0),
        *("--optim.lr", 0.01, "--regularizer.c", 1),
    )  # two steps


@pytest.mark.parametrize(("name", "gradient"), CASES)
def test_a_net_of_timm(
    name: str, gradient: str, photos: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run = (FINETUNE, *options(name, photos), *training(gradient), "--output")
    printed = succeed(*run, whole)
    assert f"timm:{name}, " in printed
    with monkeypatch.context() as patch:
        kill_at_step(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            succeed(*run, resumed)
    assert "step 1, in" in succeed(*run, resumed)
    assert_same_weights(whole, resumed)
    stored = yaml.safe_load((resumed / "config.yaml").read_text())["data"]
    assert (stored["preprocessing"], stored["interpolation"]) == ("options", "bicubic")
    assert_other_weights(whole / "weights.pth", name)

    net, plain = nets(name, whole / "weights.pth")
    images = torch.randn(3, 3, NETS[name][0], NETS[name][0])
    with torch.no_grad():
        assert torch.equal(net.eval()(images), plain.eval()(images))

    evaluated = ("--config", whole / "config.yaml", "--model.weights", whole / "weights.pth")
    printed = succeed(EVALUATE, *evaluated, "--output", tmp_path / "evaluation")
    assert "rho2" in printed

    exported = export(whole, tmp_path / "exported", "--evaluation", tmp_path / "evaluation")
    with torch.no_grad():
        assert torch.equal(net(images), loaded_net(exported)(images))


def assert_other_weights(path: Path, name: str) -> None:
    """Training has changed most layers of the net: it has a gradient in them."""
    torch.manual_seed(0)
    start: dict[str, Tensor] = build_net(name).state_dict()
    end = torch.load(path, weights_only=True)
    trained = [key for key, value in build_net(name).named_parameters() if value.requires_grad]
    changed = [key for key in trained if not torch.equal(start[key], end[key])]
    assert len(changed) > 0.9 * len(trained)


def build_net(name: str, path: Path | None = None) -> nn.Module:
    config = ModelConfig(name=f"timm:{name}", weights=None if path is None else str(path))
    return build(config, 2, NETS[name][0])


def nets(name: str, path: Path) -> tuple[nn.Module, nn.Module]:
    """The net of the pipeline and that of timm alone, with the weights of a file."""
    plain = timm.create_model(name, num_classes=2, **NETS[name][1])
    plain.load_state_dict(torch.load(path, weights_only=True))
    return build_net(name, path), plain
