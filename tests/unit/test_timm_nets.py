"""Nets of timm by name, their weights, and mistakes in either."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import linear_region
from pipeline.models.build import build
from pipeline.models.head import head_keys
from pipeline.models.weights_names import PRETRAINED, is_file_name
from tests.helpers.gradients import gradient_by, plain_gradient

NEEDS_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs the package timm (extra timm)"
)
HEADS = {
    "convnext_atto": "head.fc",
    "deit_tiny_distilled_patch16_224": "head",
    "densenet121": "classifier",
    "resnet18": "fc",
}


def without_timm(name: str, *others: Any) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def broken_timm(name: str, *others: Any) -> Any:
    raise ModuleNotFoundError("No module named 'httpcore'", name="httpcore")


@pytest.mark.parametrize(
    ("importer", "message"),
    [
        (without_timm, r"timm:NAME needs the package timm; install it: pip install -e \"\.\[timm]"),
        (broken_timm, r"needs the package timm \(No module named 'httpcore'\); install it"),
    ],
)
def test_without_the_package(
    importer: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", importer)
    with pytest.raises(UserError, match=message):
        build(ModelConfig(name="timm:resnet18"), 10)


@NEEDS_TIMM
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet188", r"timm has no net 'resnet188'; did you mean timm:resnet18\?$"),
        ("zzzz", r"timm has no net 'zzzz'; timm\.list_models\(\) lists all$"),
        ("convnext_atto.d3_in1k", r"no net 'convnext_atto\.d3_in1k'; its tags: .*d2_in1k"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(ModelConfig(name=f"timm:{name}"), 10)


@NEEDS_TIMM
@pytest.mark.parametrize("name", HEADS)
def test_heads_are_found(name: str) -> None:
    net, other = (build(ModelConfig(name=f"timm:{name}"), count) for count in (10, 12))
    expected = {key for key in net.state_dict() if key.startswith(HEADS[name])}
    assert expected
    assert set(head_keys(net, other.state_dict(), 10)) == expected


@NEEDS_TIMM
def test_nets_of_one_size_are_built_for_that_of_the_images() -> None:
    net = build(ModelConfig(name="timm:vit_tiny_patch16_224"), 10, image_size=32)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match=r"cannot be built for images of 33 x 33 \(data\.crop_size"):
        build(ModelConfig(name="timm:nest_tiny"), 10, image_size=33)


@NEEDS_TIMM
def test_relu_nets_need_no_second_derivatives() -> None:
    """timm joins batch norm and activation in a layer that checks the number of dimensions."""
    torch.manual_seed(0)
    net = build(ModelConfig(name="timm:regnetx_002"), 5).double().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    assert linear_region.is_piecewise_linear(net, images[:1])
    exact = plain_gradient(net, images, labels)
    assert exact.norm() > 0
    torch.testing.assert_close(gradient_by(net, images, labels), exact, rtol=1e-6, atol=1e-9)


@NEEDS_TIMM
@pytest.mark.parametrize("kind", ["w.pth", "w.pt", "w.safetensors"])
def test_weights_from_files(tmp_path: Path, kind: str) -> None:
    source = build(ModelConfig(name="timm:test_resnet"), 10)
    path = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    net = build(ModelConfig(name="timm:test_resnet", weights=str(path)), 10)
    state = net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
    with pytest.raises(UserError, match=r"its head is for 10 classes: .*model\.new_head true"):
        build(ModelConfig(name="timm:test_resnet", weights=str(path)), 12)
    body = build(ModelConfig(name="timm:test_resnet", weights=str(path), new_head=True), 12)
    assert torch.equal(next(body.parameters()), next(source.parameters()))


@NEEDS_TIMM
def test_weights_of_another_net(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(build(ModelConfig(name="timm:test_vit"), 10).state_dict(), path)
    config = ModelConfig(name="timm:test_resnet", weights=str(path))
    with pytest.raises(UserError, match=r"does not fit timm:test_resnet: .* is missing; "):
        build(config, 10)


@NEEDS_TIMM
def test_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = importlib.import_module("timm")
    create, calls = timm.create_model, []

    def download(name: str, pretrained: bool = False, **options: Any) -> Any:
        calls.append((name, pretrained, options))
        if pretrained and name == "resnet34":
            raise OSError("no connection\nand more lines")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", download)
    config = ModelConfig(name="timm:test_vit", weights="pretrained")
    with pytest.raises(UserError, match=r"its head is for 1000 classes: .*model\.new_head true"):
        build(config, 10, image_size=64)
    build(config, 1000, image_size=64)
    size = {"img_size": 64}
    assert calls[-2:] == [
        ("test_vit", False, {"num_classes": 1000, **size}),
        ("test_vit", True, size),
    ]
    with pytest.raises(UserError) as error:
        build(ModelConfig(name="timm:resnet34", weights="pretrained"), 1000)
    message = "timm's weights of timm:resnet34 cannot be loaded (no connection); fetch their file"
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@NEEDS_TIMM
@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm:resnet18", "DEFAULT", "DEFAULT is neither a file nor pretrained, the weights that"),
        (
            "timm:test_vit4",
            "pretrained",
            "timm publishes no weights for timm:test_vit4",
        ),
        ("resnet18", "pretrained", "neither a file nor the name of torchvision's weights"),
    ],
)
def test_names_of_weights_that_do_not_exist(name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(ModelConfig(name=name, weights=weights), 1000)


def test_a_folder_called_pretrained_is_no_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(PRETRAINED).mkdir()
    assert not is_file_name("pretrained")
    assert is_file_name("./pretrained")
