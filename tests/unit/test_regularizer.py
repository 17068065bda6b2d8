"""The gradient of the regulariser: exact, on any net, on any ranks, in bounded memory."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import (
    AttackConfig,
    DataConfig,
    ModelConfig,
    RegularizerConfig,
    RuntimeConfig,
)
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader
from pipeline.models.build import build
from pipeline.training.memory_budget import PeakMemory
from pipeline.training.objective import make_objective
from tests.helpers import nets
from tests.helpers.gradients import (
    CONFIG,
    cosine,
    every_gradient,
    gradient,
    gradient_by,
    setting,
    with_attack,
)


def accumulated_gradient(net: nn.Module, images: Tensor, labels: Tensor, num_parts: int) -> Tensor:
    objective = make_objective(net, CONFIG)
    net.eval().zero_grad()
    for x, y in zip(images.chunk(num_parts), labels.chunk(num_parts), strict=True):
        (objective(x, y, use_methods=True).loss / num_parts).backward()
    return gradient(net)


@pytest.mark.parametrize("name", ["mlp", "lenet", "convnet", "tests.helpers.nets:smooth"])
def test_accumulation_changes_nothing(name: str) -> None:
    net, images, labels = setting(name)
    whole = gradient_by(net, images, labels)
    parts = accumulated_gradient(net, images, labels, 3)
    assert (whole - parts).norm() < 1e-9 * whole.norm()


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("mlp", "T"),
        ("mlp", "F"),
        ("lenet", "T"),
        ("lenet", "F"),
        ("convnet", "T"),
        ("convnet", "F"),
        ("tests.helpers.nets:smooth", "T"),
        ("tests.helpers.nets:smooth", "F"),
        pytest.param("nin", "F", marks=pytest.mark.slow),
        pytest.param("caffe_alexnet", "F", marks=pytest.mark.slow),
    ],
)
def test_finite_differences(name: str, members: str) -> None:
    net, images, labels = setting(name)
    with torch.no_grad():
        correct = net(images).argmax(dim=1) == labels
    keep = correct if members == "T" else ~correct
    images, labels = images[keep], labels[keep]
    objective = make_objective(net, CONFIG)
    net.eval()

    def loss() -> float:
        return objective(images, labels, use_methods=True).loss.item()

    exact = gradient_by(net, images, labels)
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in net.parameters()]
    slope = torch.dot(exact, torch.cat([d.flatten() for d in direction])).item()
    start = [p.detach().clone() for p in net.parameters()]
    # Small enough for no activation of many to switch.
    values, step = [], {"nin": 1e-10, "caffe_alexnet": 1e-8}.get(name, 1e-7)
    for sign in (1, -1):
        with torch.no_grad():
            for p, s, d in zip(net.parameters(), start, direction, strict=True):
                p.copy_(s + sign * step * d)
        values.append(loss())
    measured = (values[0] - values[1]) / (2 * step)
    assert abs(measured - slope) < 1e-5 * abs(slope)


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        *every_gradient("lenet"),
        pytest.param("squeezenet1_1", "overshot", "unrolled", marks=pytest.mark.slow),
        pytest.param("squeezenet1_1", "overshot", "boundary", marks=pytest.mark.slow),
        pytest.param("resnet18", "overshot", "unrolled", marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_iterations(name: str, start: str, kind: str) -> None:
    """Only by the points of the path, which are as large as an image, not by activations."""
    peaks, iterations, num_points = {}, {}, {}
    for limit in (2, 10):
        net, images, labels = setting(name)
        # Without overshoot a sample ends up on the boundary, and many need all iterations.
        config = with_attack(kind, max_iterations=limit, overshoot=0.0, linearize_at=start)
        objective = make_objective(net.float(), config)
        net.eval()
        with PeakMemory() as memory:
            losses = objective(images.float(), labels, use_methods=True)
            losses.loss.backward()
        peaks[limit], iterations[limit] = memory.peak, losses.iterations.max().item()
        num_points[limit] = losses.iterations.sum().item()
    assert iterations[2] == 2
    assert iterations[10] >= 4
    # A point and a direction in fp32. How many iterations an image takes depends on the CPU.
    of_points = 2 * (num_points[10] - num_points[2]) * images[0].numel() * 4
    assert peaks[10] < 1.01 * peaks[2] + of_points


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.95), ("fp16", 0.99)])
def test_reduced_precision_points_the_same_way(
    squeezenet_weights: Path, ilsvrc_val: Path, precision: str, least: float, kind: str
) -> None:
    photos, data = index.read(str(ilsvrc_val)), DataConfig(crop_size=112, resize_size=128)
    specs = evaluation_specs(photos, np.arange(4), data, 4)
    (batch,) = Loader(photos, specs, data, torch.device("cpu"), 4, threads=2)
    net = build(ModelConfig(name="squeezenet1_1", weights=str(squeezenet_weights)), 1000)
    config = RegularizerConfig(lam=5, c=500, d=5, gradient=kind)
    gradients = {}
    with torch.no_grad():
        labels = net.eval()(batch.images).argmax(dim=1)
    for number_format in ("fp32", precision):
        objective = make_objective(net, config, runtime=RuntimeConfig(precision=number_format))
        net.eval().zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=number_format == "fp16")
        scaler.scale(objective(batch.images, labels, use_methods=True).loss).backward()
        gradients[number_format] = gradient(net) / scaler.get_scale()
        assert gradients[number_format].isfinite().all()
    assert cosine(gradients["fp32"], gradients[precision]) > least


def test_attack_dropout_is_repeated_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    net = nets.dropout_mlp().double()
    config = ModelConfig(name="tests.helpers.nets:dropout_mlp", attack_dropout=True)
    images = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    labels = torch.arange(6)

    def run(shift: float) -> tuple[float, Tensor]:
        moved = copy.deepcopy(net)
        with torch.no_grad():
            moved[1].weight.add_(shift * direction)
        objective = make_objective(moved, CONFIG, config)
        torch.manual_seed(3)  # the cross-entropy's masks
        loss = objective(images, labels, use_methods=True).loss
        loss.backward()
        return loss.item(), moved[1].weight.grad

    direction = torch.randn_like(net[1].weight)
    step = 1e-7
    slope = (run(0.0)[1] * direction).sum().item()
    assert (run(step)[0] - run(-step)[0]) / (2 * step) == pytest.approx(slope, rel=1e-4)


def test_without_lambda_it_is_plain_cross_entropy() -> None:
    net, images, labels = setting("lenet")
    losses = make_objective(net, CONFIG)(images, labels, use_methods=False)
    assert losses.loss.item() == nn.functional.cross_entropy(net(images), labels).item()
    assert not losses.ratio.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "vgg11_bn", "densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small"),
        *("mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_x_400mf"),
        *("convnext_tiny", "vit_b_32", "swin_t", "swin_v2_t", "resnext50_32x4d"),
    ],
)
def test_torchvisions_nets_have_second_derivatives(name: str) -> None:
    """In-place activations, fused attention and the like must not stand in the way."""
    torch.manual_seed(0)
    net = build(ModelConfig(name=name), 10).eval()
    with torch.no_grad():  # some begin with a last layer of zeros, where nothing moves
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    side = 224 if name == "vit_b_32" else 64
    images = torch.randn(1, 3, side, side)
    objective = make_objective(
        net, RegularizerConfig(lam=5, c=3, attack=AttackConfig(max_iterations=1))
    )
    net.eval()
    losses = objective(images, net(images).argmax(dim=1), use_methods=True)
    losses.loss.backward()
    assert gradient(net).isfinite().all()
    assert losses.ratio.item() > 0
