"""The helper that enumerates linear regions, against brute force in two dimensions."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import nets
from tests.helpers.exhaustive import exact_distance


def net_of(inputs: int, hidden: int, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    return nn.Sequential(*layers).double()


def nearest_on_rays(net: nn.Module, image: Tensor, p: float) -> float:
    """The smallest p-norm on a fine polar grid of a point of another class."""
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], dim=1)
    rays = rays / torch.linalg.vector_norm(rays, p, dim=1, keepdim=True)
    lengths = torch.linspace(0, 20, 1001, dtype=torch.float64)
    points = image.flatten() + lengths[:, None, None] * rays  # (L, A, 2)
    with torch.no_grad():
        other = net(points.flatten(0, 1)).argmax(dim=1) != net(image[None]).argmax()
    crossed = other.view(len(lengths), -1).any(dim=1)
    return float(lengths[crossed.int().argmax()]) if crossed.any() else math.inf


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_brute_force(p: float, seed: int) -> None:
    net = net_of(2, 6, 3, seed)
    image = torch.randn(1, 1, 2, dtype=torch.float64)
    exact, sampled = exact_distance(net, image, p), nearest_on_rays(net, image, p)
    if math.isinf(sampled):
        assert exact.distance > 19
        return
    assert exact.distance <= sampled + 1e-9
    assert exact.distance >= 0.98 * sampled - 0.03  # the grid's steps


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_its_point_is_on_the_boundary(p: float) -> None:
    net = net_of(12, 8, 4, seed=1)
    for image in torch.randn(4, 1, 3, 4, dtype=torch.float64):
        distance, delta, target = exact_distance(net, image, p)
        assert torch.linalg.vector_norm(delta, p) == pytest.approx(distance)
        with torch.no_grad():
            logits = net((image + delta)[None])[0]
            clean = net(image[None]).argmax()
            beyond = net((image + 1.0001 * delta)[None]).argmax()
        assert abs(logits[clean] - logits[target]) < 1e-7
        assert beyond != clean


def test_one_class_everywhere_has_no_boundary() -> None:
    net = net_of(2, 3, 2, seed=0)
    with torch.no_grad():
        list(net.parameters())[2].zero_()
    assert exact_distance(net, torch.zeros(1, 1, 2)).distance == math.inf


def test_other_nets_are_refused() -> None:
    with pytest.raises(AssertionError, match="two-layer"):
        exact_distance(nets.smooth(), torch.zeros(3, 32, 32))
