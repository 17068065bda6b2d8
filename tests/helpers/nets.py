"""Small networks for tests, also reachable as tests.helpers.nets:NAME."""

import time

import torch
from torch import nn

from pipeline.models.paper_nets import mlp


def dropout_mlp(num_classes: int = 10) -> nn.Module:
    """An MLP with dropout, so that training draws random numbers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, num_classes)
    )


def slow_mlp(num_classes: int = 10, seconds: float = 0.02) -> nn.Module:
    """The paper's MLP, but slower. Its weights have the same names and initial values."""
    net = mlp(num_classes)
    net[0].register_forward_hook(lambda *_: time.sleep(seconds))
    return net


def slower_mlp(num_classes: int = 10) -> nn.Module:
    """A slower MLP, for runs that must take some seconds."""
    return slow_mlp(num_classes, 0.08)


def slowest_mlp(num_classes: int = 10) -> nn.Module:
    """The slowest MLP, for runs that must take more than a minute."""
    return slow_mlp(num_classes, 0.2)


def smooth(num_classes: int = 10) -> nn.Module:
    """A net with GELU and local response normalisation, so it is not piecewise linear."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.LocalResponseNorm(4, alpha=0.5)),
        *(nn.Conv2d(8, 12, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(48, num_classes),
    )


def first_two(num_classes: int = 10) -> nn.Module:
    """`smooth`, but it predicts only the first two classes, with small margins."""
    net = smooth(num_classes)
    with torch.no_grad():
        net[-1].bias[:2] = torch.tensor([10.033, 10.0])  # each class for half of the photos
    return net


class Exploding(nn.Sequential):
    """A net whose logits are finite in evaluation mode, and not finite in training mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits * torch.inf if self.training else logits


def exploding(num_classes: int = 10) -> nn.Module:
    return Exploding(nn.Flatten(), nn.Linear(784, num_classes))


def masked(num_classes: int = 10) -> nn.Module:
    """A net with infinity in a buffer."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return net


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """Logits weight @ x + bias."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight))).to(weight.dtype)
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(bias)
    return net


def not_a_net() -> int:
    return 3
