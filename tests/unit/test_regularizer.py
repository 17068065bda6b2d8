"""The gradient of the regulariser: exact for any net and on any ranks, in bounded memory."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
from tests.helpers import nets, unrolled
from tests.helpers.gradients import (
    CONFIG,
    SHAPES,
    cosine,
    gradient,
    gradient_by,
    setting,
    with_attack,
)

LARGE = ("nin", "resnet18")
SMALL = [  # without caffe_alexnet, which takes minutes
    pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
    for name in SHAPES
    if name != "caffe_alexnet"
]


def ours(net: nn.Module, images: Tensor, labels: Tensor, accumulation: int = 1) -> Tensor:
    objective = make_objective(net, CONFIG)
    net.eval().zero_grad()
    for x, y in zip(images.chunk(accumulation), labels.chunk(accumulation), strict=True):
        (objective(x, y, use_methods=True).loss / accumulation).backward()
    return gradient(net)


def plainly(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig = CONFIG
) -> Tensor:
    net.eval().zero_grad()
    unrolled.loss(net, images, labels, config).backward()
    return gradient(net)


@pytest.mark.parametrize("name", SMALL)
def test_equals_a_plain_unrolling(name: str) -> None:
    net, images, labels = setting(name)
    losses = make_objective(net, CONFIG)(images, labels, use_methods=True)
    assert losses.iterations.max() >= 2  # there is more than one iteration
    assert set(losses.correct.tolist()) == {True, False}
    a, b = ours(net, images, labels), plainly(net, images, labels)
    assert cosine(a, b) > 0.99999
    assert (a - b).norm() < 1e-9 * b.norm()


@pytest.mark.parametrize("name", SMALL)
def test_from_the_tested_point_it_equals_a_plain_unrolling(name: str) -> None:
    net, images, labels = setting(name)
    config = with_attack(linearize_at="overshot")
    a, b = gradient_by(net, images, labels, config), plainly(net, images, labels, config)
    assert (a - b).norm() < 1e-9 * b.norm()
    assert (a - plainly(net, images, labels)).norm() > 1e-6 * b.norm()  # not the same point


@pytest.mark.parametrize("name", SMALL)
def test_accumulation_changes_nothing(name: str) -> None:
    net, images, labels = setting(name)
    whole, parts = ours(net, images, labels), ours(net, images, labels, accumulation=3)
    assert (whole - parts).norm() < 1e-9 * whole.norm()


@pytest.mark.parametrize("members", ["T", "F"])
@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "lenet",
        "convnet",
        pytest.param("nin", marks=pytest.mark.slow),
        pytest.param("caffe_alexnet", marks=pytest.mark.slow),
        "tests.helpers.nets:smooth",
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

    exact = ours(net, images, labels)
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


def rank_gradient(
    rank: int, size: int, port_file: str, out: str, name: str, config: RegularizerConfig = CONFIG
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(port_file, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    net, images, labels = setting(name, count=8)
    objective = make_objective(net, config)
    ddp = DistributedDataParallel(objective)
    net.eval()
    # Two passes of each rank: rank r takes images 2r, 2r+1, then 4 + 2r, 5 + 2r.
    parts = [slice(2 * rank, 2 * rank + 2), slice(4 + 2 * rank, 6 + 2 * rank)]
    with ddp.no_sync():
        (ddp(images[parts[0]], labels[parts[0]], True).loss / 2).backward()
    (ddp(images[parts[1]], labels[parts[1]], True).loss / 2).backward()
    torch.save(gradient(net), f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mlp", marks=pytest.mark.slow),
        "lenet",
        pytest.param("squeezenet1_1", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_with_accumulation_equal_one_plain_unrolling(tmp_path: Path, name: str) -> None:
    arguments = (2, str(tmp_path / "store"), str(tmp_path / "gradient"), name)
    multiprocessing.spawn(rank_gradient, arguments, nprocs=2)
    first, second = (torch.load(f"{arguments[2]}.{rank}", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    net, images, labels = setting(name, count=8)
    wanted = plainly(net, images, labels)
    assert cosine(first, wanted) > 0.99999
    assert (first - wanted).norm() < 1e-9 * wanted.norm()


@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
def test_two_ranks_in_parts_equal_one(tmp_path: Path, kind: str) -> None:
    config = with_attack(kind, linearize_at="overshot", target_class="fixed")
    net, images, labels = setting("lenet", count=8)
    wanted = gradient_by(net, images, labels, config)
    config.max_images = 1
    arguments = (2, str(tmp_path / "store"), str(tmp_path / "gradient"), "lenet", config)
    multiprocessing.spawn(rank_gradient, arguments, nprocs=2)
    found = torch.load(f"{arguments[2]}.0", weights_only=True)
    assert (found - wanted).norm() < 1e-9 * wanted.norm()


@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
@pytest.mark.parametrize("start", ["current", "overshot"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("squeezenet1_1", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
        "lenet",
    ],
)
def test_memory_does_not_grow_with_the_iterations(name: str, start: str, kind: str) -> None:
    peaks, iterations = {}, {}
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
    assert iterations[2] == 2
    assert iterations[10] >= 4
    assert peaks[10] < 1.05 * peaks[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
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
    for each in ("fp32", precision):
        objective = make_objective(net, config, runtime=RuntimeConfig(precision=each))
        net.eval().zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=each == "fp16")
        scaler.scale(objective(batch.images, labels, use_methods=True).loss).backward()
        gradients[each] = gradient(net) / scaler.get_scale()
        assert gradients[each].isfinite().all()
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


@pytest.mark.parametrize("labels", ["T", "F"])
def test_batches_of_one_kind(labels: str) -> None:
    net, images, _ = setting("lenet")
    with torch.no_grad():
        prediction = net(images).argmax(dim=1)
    chosen = prediction if labels == "T" else (prediction + 1) % 10
    a, b = ours(net, images, chosen), plainly(net, images, chosen)
    assert (a - b).norm() < 1e-9 * b.norm()


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
    """In-place activations and fused attention do not prevent second derivatives."""
    torch.manual_seed(0)
    net = build(ModelConfig(name=name), 10).eval()
    with torch.no_grad():  # a last layer of zeros has no gradient
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
