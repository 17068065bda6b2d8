"""Gradients by the parameters from a record of the layers, against autograd's."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from pipeline.models.layer_record import (
    CheckedLayerRecord,
    LayerRecord,
    is_recordable,
    tangents_allowed,
)
from pipeline.models.parameter_gradients import UnscaledGradient, scaled_gradients
from pipeline.models.recorded_layers import LayerConstants

WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
TANGENT_WEIGHT = torch.tensor([0.3, 1.0, -1.0, 2.0], dtype=torch.float64)


class Shared(nn.Module):
    """One layer used twice, a skip connection, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.first(x))
        y = F.relu(self.norm(self.twice(x)), inplace=True)
        y = y + x
        x = F.max_pool2d(F.leaky_relu(self.twice(y)), 2)
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU6(), nn.AvgPool2d(2), nn.BatchNorm2d(4)),
        *(nn.Flatten(), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 5, bias=False)),
    )


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    """A net in float64 whose batch norm has seen data."""
    torch.manual_seed(0)
    net = make().double()
    for _ in range(5):
        net(torch.randn(8, 3, 12, 12, dtype=torch.float64))
    return net.eval()


def by_autograd(net: nn.Module, images: Tensor, v: Tensor) -> list[Tensor]:
    """Gradients of sum_s (a_s f_s + b_s <v_s, w_s>), by a second derivative."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    images = images.clone().requires_grad_()
    f = net(images)[:, 0] - net(images)[:, 3]
    (w,) = torch.autograd.grad(f.sum(), images, create_graph=True)
    total = (WEIGHT * f).sum() + (TANGENT_WEIGHT * (v * w).flatten(1).sum(dim=1)).sum()
    return [*torch.autograd.grad(total, parameters)]


def by_record(net: nn.Module, images: Tensor, v: Tensor) -> list[Tensor | None]:
    parameters = [p for p in net.parameters() if p.requires_grad]
    record = CheckedLayerRecord(parameters)
    with tangents_allowed():
        points = forward_ad.make_dual(images.clone().requires_grad_(), v)
        with record:
            logits = net(points)
        logits = forward_ad.unpack_dual(logits).primal
    assert record.is_complete
    torch.autograd.grad((logits[:, 0] - logits[:, 3]).sum(), points)
    return record.gradients(WEIGHT, TANGENT_WEIGHT)


def check(net: nn.Module, images: Tensor, v: Tensor) -> None:
    expected, gradients = by_autograd(net, images, v), by_record(net, images, v)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [Shared, plain])
def test_the_gradients_are_autograds(make: Callable[[], nn.Module]) -> None:
    net = prepared(make)
    check(net, *torch.randn(2, 4, 3, 12, 12, dtype=torch.float64))


def test_frozen_parameters_have_none() -> None:
    net = prepared(Shared)
    net.first.requires_grad_(False)
    check(net, *torch.randn(2, 4, 3, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_in_every_precision(precision: torch.dtype, channels_last: bool) -> None:
    net = prepared(Shared).float()
    images = torch.randn(4, 3, 12, 12)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)

    def in_precision(points: Tensor) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return net(points).float()

    assert is_recordable(in_precision, images, [*net.parameters()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scaled_gradients_have_the_parameters_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parameters = [torch.zeros(5, dtype=dtype), torch.zeros(3, 2), torch.zeros(4)]
    gradients = [torch.randn(5), torch.randn(3, 2).bfloat16(), torch.randn(4)]
    factors = [torch.randn(5), None, torch.randn(4)]
    unit = torch.tensor(3.0)
    expected = [
        ((gradient if factor is None else gradient * factor).to(parameter.dtype) * unit)
        for parameter, gradient, factor in zip(parameters, gradients, factors, strict=True)
    ]
    columns = zip(parameters, gradients, factors, strict=True)
    scaled = scaled_gradients([UnscaledGradient(*column) for column in columns], unit)
    for one, other in zip(scaled, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert scaled_gradients([], unit) == []


class Scaled(nn.Module):
    """A parameter that no layer uses."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = plain(), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


class Tokens(nn.Module):
    """A linear layer on several vectors an image, in a dimension of their own or as rows."""

    def __init__(self, as_rows: bool) -> None:
        super().__init__()
        self.net, self.as_rows = nn.Linear(12, 5), as_rows

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        if self.as_rows:
            return self.net(tokens.flatten(0, 1)).view(len(x), -1, 5).mean(dim=1)
        return self.net(tokens).mean(dim=1)


class Token(nn.Module):
    """A parameter in a list of arguments, with a small gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.token = plain(), nn.Parameter(torch.ones(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + 1e-3 * torch.cat([logits, self.token]).mean(dim=0)


class SamePadding(nn.Module):
    """A convolution whose padding is a string."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 5, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(dim=(2, 3))


class Turned(nn.Module):
    """A layer that takes the images as channels: samples do not come first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1)[:, :3].t()).t()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_constants_are_computed_once(precision: torch.dtype) -> None:
    """Records that share constants give the same bits as records that do not."""
    net = prepared(lambda: nn.Sequential(plain(), nn.Unflatten(1, (5, 1, 1)), nn.BatchNorm2d(5)))
    net = nn.Sequential(net, nn.Flatten()).float()
    parameters, images = [*net.parameters()], torch.randn(2, 4, 3, 12, 12)
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0])

    def gradients(points: Tensor, constants: LayerConstants | None) -> list[Tensor | None]:
        record = LayerRecord(parameters, constants)
        points = points.clone().requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32), record:
            f = net(points).float()[:, 0]
        torch.autograd.grad(f.sum(), points)
        return record.gradients(weight)

    shared = LayerConstants()
    for points in images:
        pairs = zip(gradients(points, shared), gradients(points, None), strict=True)
        for one, other in pairs:
            assert one is not None
            assert torch.equal(one, other)
    num_kept = len(shared)
    gradients(images[0], shared)
    assert len(shared) == num_kept


def test_constants_of_weights_that_are_gone_are_freed() -> None:
    """As of a parametrization, which computes a weight in each pass."""
    constants = LayerConstants()
    for _ in range(3):
        weight = torch.randn(4, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert constants.kernel(weight).dtype == torch.bfloat16
            assert constants.kernel(weight) is constants.kernel(weight)
    assert len(constants) == 1


NOT_RECORDABLE = {
    "scaled": Scaled,
    "tokens": lambda: Tokens(as_rows=False),
    "tokens as rows": lambda: Tokens(as_rows=True),
    "token": Token,
    "same padding": SamePadding,
    "turned": Turned,
}


@pytest.mark.parametrize("make", NOT_RECORDABLE.values(), ids=NOT_RECORDABLE)
def test_nets_that_use_parameters_otherwise_are_known(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    assert not is_recordable(net, torch.randn(3, 3, 12, 12), [*net.parameters()])
