"""Small networks for tests, also reachable as tests.helpers.nets:NAME."""

import time

import torch
from torch import nn

from pipeline.models.paper_nets import mlp


def dropout_mlp(num_classes: int = 10) -> nn.Module:
    """With dropout, so that training draws random numbers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, num_classes)
    )


def slow_mlp(num_classes: int = 10, seconds: float = 0.02) -> nn.Module:
    """The paper's MLP, slower; its weights have the same names and start alike."""
    net = mlp(num_classes)
    net[0].register_forward_hook(lambda *_: time.sleep(seconds))
    return net


def slower_mlp(num_classes: int = 10) -> nn.Module:
    """For runs that are to last."""
    return slow_mlp(num_classes, 0.08)


def slowest_mlp(num_classes: int = 10) -> nn.Module:
    """For runs that are to outlast a minute."""
    return slow_mlp(num_classes, 0.2)


def smooth(num_classes: int = 10) -> nn.Module:
    """Not piecewise linear: GELU and local response normalisation."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.LocalResponseNorm(4, alpha=0.5)),
        *(nn.Conv2d(8, 12, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(48, num_classes),
    )


class HeadFirst(nn.Module):
    """A net that defines its head before the layer of three rows below it."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.body = nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images.flatten(1)).relu())


class InPlaceShortcut(nn.Module):
    """A residual block whose first ReLU may be in place: the shortcut then carries its result."""

    def __init__(self, inplace: bool, num_classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=inplace)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        x = self.second(self.relu(x)) + x
        return self.head(x.mean((2, 3)))


class Embedded(nn.Module):
    """Patches with a class token and position embeddings, as in a ViT, and a sum of two parameters.

    autograd returns one tensor, or views of it, as the gradients of parameters that are added.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.first, self.second = (nn.Parameter(torch.randn(12)) for _ in range(2))
        self.mix = nn.Linear(60, 24)
        self.head = nn.Linear(24, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1)
        tokens = nn.functional.gelu(tokens + self.position + (self.first + self.second))
        return self.head(nn.functional.gelu(self.mix(tokens.flatten(1))))


def embedded(num_classes: int = 10) -> nn.Module:
    """`Embedded`, for images of 3 x 32 x 32."""
    return Embedded(num_classes)


def smooth_with_dropout(num_classes: int = 10) -> nn.Module:
    """Not piecewise linear, for images of 1 x 28 x 28; drops channels and features."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3),
        nn.GELU(),
        nn.Dropout2d(0.4),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(384, num_classes),
    )


def first_two(num_classes: int = 10) -> nn.Module:
    """`smooth`, which only ever predicts one of the first two classes, and with small margins."""
    net = smooth(num_classes)
    with torch.no_grad():
        net[-1].bias[:2] = torch.tensor([10.033, 10.0])  # halves the photos, with seed 0
    return net


class Exploding(nn.Sequential):
    """Its logits are finite until it trains."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits * torch.inf if self.training else logits


def exploding(num_classes: int = 10) -> nn.Module:
    return Exploding(nn.Flatten(), nn.Linear(784, num_classes))


def masked(num_classes: int = 10) -> nn.Module:
    """With infinity in a buffer."""
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


def every_layer() -> nn.Module:
    """Batch norm, leaky ReLU, ReLU6, dropout, pools that overlap and have padding."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2)),
        *(nn.Dropout(0.5), nn.Conv2d(4, 4, 2), nn.ReLU6(), nn.MaxPool2d(3, 1, padding=1)),
        *(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    )
    for name, values in net.named_buffers():
        if values.is_floating_point():
            values.copy_(torch.rand_like(values) + float("var" in name))
    return net.eval()


def pool_before_relu() -> nn.Module:
    """Windows that reach over the edge; a clamp with two kinks; channels_last."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 5, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(inplace=True)),
        *(nn.Conv2d(5, 5, 2), nn.Hardtanh(-0.2, 0.1), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(5, 4),
    )
    return net.eval().to(memory_format=torch.channels_last)
