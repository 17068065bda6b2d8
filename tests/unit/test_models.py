"""Networks by name, weights in, and what the attack sees of a net."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config import DataConfig, FinetuneConfig, ModelConfig, RegularizerConfig
from pipeline.data.classes import Classes
from pipeline.errors import UserError
from pipeline.models import trial
from pipeline.models.attack_view import AttackView
from pipeline.models.build import batch_norms, build
from pipeline.models.preprocessing import preprocessing_advice
from pipeline.models.torchvision_nets import categories
from pipeline.models.weight_classes import KEY, recorded_classes, with_classes
from pipeline.models.weights import load_weights
from pipeline.training.objective import make_objective
from tests.helpers import nets


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 28, 28)),
        ("lenet", (1, 28, 28)),
        ("resnet18", (3, 64, 64)),
        ("alexnet", (3, 96, 96)),
        ("squeezenet1_1", (3, 64, 64)),
        ("googlenet", (3, 64, 64)),
        ("tests.helpers.nets:smooth", (3, 32, 32)),
    ],
)
def test_nets_by_name(name: str, shape: tuple[int, ...]) -> None:
    net = build(ModelConfig(name=name), num_classes=7)
    assert AttackView(net)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1800", r"no net 'resnet1800'.*resnet18"),
        ("tests.helpers.nets:nothing", "cannot be imported"),
        ("no_such_package:net", "cannot be imported"),
        ("tests.helpers.nets:not_a_net", "returned a int, not an nn.Module"),
    ],
)
def test_unknown_nets(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(ModelConfig(name=name), 10)


@pytest.mark.parametrize(
    "kind", ["bare.pth", "model.pt", "state_dict.pth", "ddp.pth", "s.safetensors"]
)
def test_weights_from_files(tmp_path: Path, kind: str) -> None:
    source = build(ModelConfig(name="lenet"), 10)
    state = source.state_dict()
    path = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_file(state, path)
    elif kind == "ddp.pth":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        key = kind.split(".")[0]
        torch.save(state if key == "bare" else {key: state, "step": 3}, path)
    net = build(ModelConfig(name="lenet", weights=str(path)), 10)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), source.parameters(), strict=True)
    )


def test_weights_that_do_not_fit_say_where(tmp_path: Path) -> None:
    state = build(ModelConfig(name="lenet"), 12).state_dict()
    state["spare.weight"] = state.pop("0.bias")
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        build(ModelConfig(name="lenet", weights=str(path)), 10)
    message = str(error.value)
    assert "7.weight is (12, 500), the net has (10, 500)" in message
    assert "0.bias is missing" in message
    assert "spare.weight is unknown to the net" in message


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    def load(path: Path | str) -> None:
        load_weights(nets.dropout_mlp(), ModelConfig(name="mlp", weights=str(path)), 10)

    with pytest.raises(UserError, match="no file"):
        load(tmp_path / "none.pth")
    whole = tmp_path / "whole.pth"
    torch.save(nets.dropout_mlp(), whole)  # a pickled module would run code
    with pytest.raises(UserError, match=r"holds a Python object besides tensors \(torch.nn"):
        load(whole)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(whole.read_bytes()[:100])
        with pytest.raises(UserError, match="cut"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="neither a file nor the name of torchvision's weights"):
        load_weights(nets.smooth(), ModelConfig(name="resnet18", weights="IMAGENET9"), 10)


def test_frozen_batch_norm_neither_trains_nor_counts() -> None:
    net = build(ModelConfig(name="resnet18"), 5)
    objective = make_objective(net, RegularizerConfig(lam=0))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    optimizer = torch.optim.SGD(objective.view.parameters(), lr=0.1)
    objective(images, labels, use_methods=False).loss.backward()
    optimizer.step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {
        f"{name}.{key}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert changed
    assert not changed & frozen


def test_free_batch_norm_trains_but_the_attack_sees_stored_statistics() -> None:
    config = ModelConfig(name="resnet18", freeze_batch_norm=False)
    net = build(config, 5)
    objective = make_objective(net, RegularizerConfig(), config)
    assert all(module.training for module in batch_norms(net))
    images = torch.randn(4, 3, 64, 64)
    one_by_one = torch.cat([objective.view(image[None]) for image in images])
    assert torch.allclose(objective.view(images), one_by_one, atol=1e-4)
    assert all(module.training for module in batch_norms(net))


@pytest.mark.parametrize("keeps_statistics", [True, False])
def test_a_net_that_mixes_images_is_warned_of(
    keeps_statistics: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=keeps_statistics),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    config = FinetuneConfig(data=DataConfig(crop_size=8, resize_size=8))
    trial.check_net(net.eval(), config, 10)
    printed = capsys.readouterr().err
    assert ("other logits beside another image than alone" in printed) is not keeps_statistics


def test_dropout_is_off_inside_the_attack_unless_asked_for() -> None:
    net = nets.dropout_mlp().train()
    images = torch.randn(6, 1, 28, 28)
    view = AttackView(net)
    assert torch.equal(view(images), view(images))
    assert not torch.equal(net(images), net(images))
    noisy = AttackView(net, dropout=True)  # test_dropout.py has the rest
    noisy.draw_dropout_masks(6)
    assert not torch.equal(noisy(images), view(images))
    assert net[3].training


def test_reduced_precision_forward_leaves_gradients_whole() -> None:
    # A forward without a graph must not leave cast weights behind for the next one.
    net = nets.smooth()
    view = AttackView(net, torch.bfloat16)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        view(images)
    view(images).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert view(images).dtype == torch.float32


def test_named_weights_say_what_they_were_made_for() -> None:
    def advice(name: str, weights: str | None, **data: object) -> str:
        return preprocessing_advice(ModelConfig(name=name, weights=weights), DataConfig(**data))

    assert advice("resnet18", "IMAGENET1K_V1") == ""
    assert advice("resnet18", None, crop_size=100) == ""
    assert advice("resnet18", "DEFAULT", resize_size=224) == (
        "the weights DEFAULT were trained with --data.resize_size 256"
    )
    wanted = advice("efficientnet_b0", "IMAGENET1K_V1")
    assert wanted.endswith("--data.interpolation bicubic")
    assert advice("efficientnet_b0", "IMAGENET1K_V1", interpolation="bicubic") == ""
    assert "--data.resize_size 232" in advice("resnet50", "IMAGENET1K_V2")
    assert advice("googlenet", "DEFAULT").endswith(
        "--data.mean [0.5,0.5,0.5] --data.std [0.5,0.5,0.5]"
    )


@pytest.mark.parametrize("kind", ["bare.pth", "model.pt", "step.pt", "w.safetensors", "none.pth"])
def test_weights_record_their_classes(tmp_path: Path, kind: str) -> None:
    classes = Classes(["tench", "hen"], ["n1", "n2"])
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / kind
    described = with_classes(state, classes)
    if kind == "w.safetensors":
        save_file(state, path, {KEY: json.dumps(classes.to_dict())})
    else:
        torch.save({"model": described} if kind == "model.pt" else described, path)
    if kind == "none.pth":
        torch.save(state, path)
    if kind == "step.pt":  # a checkpoint of a run
        torch.save({"model": state, "classes": classes.to_dict()}, path)
    assert recorded_classes(path) == (None if kind == "none.pth" else classes)
    if kind == "bare.pth":  # any program can read it
        loaded = torch.load(path, weights_only=True)
        assert nn.Linear(3, 2).load_state_dict(loaded, strict=True)
        assert list(loaded) == ["weight", "bias"]
        save_file(loaded, tmp_path / "converted.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert recorded_classes(path) is None


def test_categories_of_named_weights() -> None:
    config = ModelConfig(name="resnet18", weights="IMAGENET1K_V1")
    assert categories(config)[:2] == ["tench", "goldfish"]
    assert categories(ModelConfig(name="resnet18", weights="NONE")) == []
