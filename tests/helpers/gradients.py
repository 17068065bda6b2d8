"""What the tests of the gradient share."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import AttackConfig, ModelConfig, RegularizerConfig
from pipeline.models.build import build
from pipeline.training.objective import make_objective
from tests.helpers import unrolled

# As the paper has it: every candidate in every iteration.
CONFIG = RegularizerConfig(lam=5, c=3, d=5, attack=AttackConfig())
SHAPES = {
    "mlp": (1, 28, 28),
    "lenet": (1, 28, 28),
    "squeezenet1_1": (3, 64, 64),
    "resnet18": (3, 48, 48),
    "convnet": (3, 32, 32),
    "nin": (3, 32, 32),
    "caffe_alexnet": (3, 227, 227),
    "tests.helpers.nets:smooth": (3, 32, 32),
    "tests.helpers.nets:embedded": (3, 32, 32),
}


SMALL_NETS = [  # all but caffe_alexnet, which takes minutes
    pytest.param(name, marks=pytest.mark.slow)
    if name in ("nin", "resnet18", "squeezenet1_1")
    else name
    for name in SHAPES
    if name != "caffe_alexnet"
]


def every_gradient(*names: str) -> list[tuple[str, str, str]]:
    """(net, linearize_at, gradient) for every kind of gradient of these nets."""
    return list(itertools.product(names, ("current", "overshot"), ("unrolled", "boundary")))


def setting(name: str, count: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in float64 and images of which a third is classified wrongly."""
    torch.manual_seed(0)
    net = build(ModelConfig(name=name), 10).double().eval()
    if name == "squeezenet1_1":  # at its initialisation it gives many zeros: move away from it
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    if name == "nin":  # its logits would be nearly constant
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    images = torch.randn(count, *SHAPES[name], dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 10
    return net, images, labels


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


def with_attack(gradient_kind: str = "unrolled", **attack: object) -> RegularizerConfig:
    return RegularizerConfig(lam=5, c=3, d=5, gradient=gradient_kind, attack=AttackConfig(**attack))


def gradient_by(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig = CONFIG
) -> Tensor:
    """The gradient of the pipeline's objective."""
    objective = make_objective(net, config)
    net.eval().zero_grad()
    objective(images, labels, use_methods=True).loss.backward()
    return gradient(net)


def plain_gradient(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig = CONFIG
) -> Tensor:
    """The gradient of the plain unrolling."""
    net.eval().zero_grad()
    unrolled.loss(net, images, labels, config).backward()
    return gradient(net)
