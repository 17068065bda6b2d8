"""Linear bounds of a net's logits in a ball, and the radius in which they keep the class."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import lower_bound as module
from pipeline.attacks.lower_bound import lower_bound
from pipeline.attacks.norms import dual_exponent, per_sample_norm
from pipeline.attacks.relaxed_bound import RelaxedNet
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_relaxation import Relaxation
from pipeline.models.paper_nets import mlp
from tests.helpers import nets
from tests.helpers.exhaustive import exact_distance

NORMS = [2.0, math.inf, 1.5]
ROW = torch.tensor([0])


def relaxed(net: nn.Module, image: Tensor, p: float) -> RelaxedNet:
    return RelaxedNet(AttackView(net), image[None], ROW, dual_exponent(p))


def points_in_ball(image: Tensor, radius: float, p: float) -> Tensor:
    """Random points, most of them on the sphere, some at corners of a cube."""
    directions = torch.randn(600, *image.shape, dtype=image.dtype)
    directions[::2] = directions[::2].sign()
    directions[::3] *= torch.rand_like(directions[::3]) < 0.1
    lengths = radius / per_sample_norm(directions, p).clamp(min=1e-9)
    lengths[::5] *= torch.rand_like(lengths[::5])
    return image + lengths[:, None, None, None] * directions


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("make", [nets.every_layer, nets.pool_before_relu])
def test_no_point_of_the_ball_is_below(make: Callable[[], nn.Module], p: float) -> None:
    torch.manual_seed(0)
    net = make().double()
    for image in torch.randn(1, 2, 10, 10, dtype=torch.float64):
        bounds = relaxed(net, image, p)
        distance = float(lower_bound(AttackView(net), image[None], p).nearest)
        for radius in (0.01 * distance, 0.3 * distance, distance, 5 * distance):
            lowest = bounds.smallest_difference(radius)
            with torch.no_grad():
                clean = net(image[None]).argmax()
                logits = net(points_in_ball(image, radius, p))
            others = logits.clone()
            others[:, clean] = -math.inf
            assert lowest <= float((logits[:, clean] - others.amax(dim=1)).min())


SMALL = {
    "relu": (nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
    "leaky": (nn.Linear(2, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2)),
    "clamp": (
        nn.Linear(2, 4),
        nn.Hardtanh(-0.2, 0.3),
        nn.Linear(4, 3),
        nn.ReLU6(),
        nn.Linear(3, 2),
    ),
    "pool": (
        *(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d((1, 2)), nn.Flatten()),
        nn.Linear(2, 2),
    ),
}


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("layers", SMALL.values(), ids=SMALL.keys())
def test_two_dimensional_balls(layers: tuple[nn.Module, ...], p: float) -> None:
    """On a grid the bound is below all points; on the average it is close to the lowest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), *layers).double()
    steps = torch.linspace(-1, 1, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps).view(-1, 1, 1, 2)
    grid = grid[per_sample_norm(grid, p) <= 1]
    below, lowest = [], []
    for number in range(60):
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        image, radius = torch.randn(1, 1, 2, dtype=torch.float64), 0.1 * 2 ** (number % 5)
        with torch.no_grad():
            differences = net(image + radius * grid) @ torch.tensor([1.0, -1.0]).double()
            center = net(image[None]) @ torch.tensor([1.0, -1.0]).double()
        bound = relaxed(net, image, p).smallest_difference(radius)
        below.append(float(center.abs()) - bound)
        lowest.append(float((center.abs() - differences * center.sign()).max()))
        assert below[-1] >= lowest[-1]
    assert sum(below) < 5.0 * sum(lowest)


@pytest.mark.parametrize(("p", "hidden"), [(2.0, 10), (math.inf, 6)])
def test_it_is_below_the_exact_distance_and_not_far(p: float, hidden: int) -> None:
    """Two-layer nets, whose regions are enumerated."""
    torch.manual_seed(1)
    layers = nn.Flatten(), nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3)
    net = nn.Sequential(*layers).double()
    shares = []
    for image in 2 * torch.randn(20, 1, 3, 4, dtype=torch.float64):
        exact = exact_distance(net, image, p).distance
        if math.isfinite(exact):
            radius = relaxed(net, image, p).certified_radius(exact)
            assert 0 < radius <= exact
            assert relaxed(net, image, p).smallest_difference(1.001 * exact) < 0
            shares.append(radius / exact)
    assert len(shares) > 10
    assert sum(shares) / len(shares) > 0.5


def test_the_sides_of_a_relu_and_of_a_pool() -> None:
    """Several ReLUs of a pool may be on, while only one counts: its lower side is 0."""
    for is_pool, expected in ((False, [[1.0], [-0.6]]), (True, [[0.0], [-0.6]])):
        values = torch.full((2, 1), -0.1, dtype=torch.float64)
        relaxation = Relaxation(values, values.new_ones(()), is_pool)
        relaxation.set_bounds(values.new_tensor([-0.4]), values.new_tensor([0.6]))
        coefficients = relaxation.backward(values.new_tensor([[1.0], [-1.0]]))
        assert torch.allclose(coefficients, values.new_tensor(expected))
        below = 0.0 if is_pool else 0.1  # relu(-0.1) is 0; the sides are -0.1 or 0, and 0.18
        assert relaxation.take_slack().tolist() == pytest.approx([below, 0.18])
        assert float(relaxation.take_slack()) == 0


def test_an_affine_net_has_a_radius_close_to_the_largest() -> None:
    net = nets.linear(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 0.8]))
    image = torch.tensor([[[0.9, 0.5]]])  # the boundary is at 0.8
    assert 0.09 < relaxed(net, image, 2.0).certified_radius(0.1) <= 0.1


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_fp32_is_rounded_down(p: float) -> None:
    """At any radius the bound in fp32 is below that in fp64."""
    torch.manual_seed(0)
    net = mlp().eval()
    for image in torch.randn(3, 1, 28, 28):
        single, double = relaxed(net, image, p), relaxed(mlp_in_fp64(net), image.double(), p)
        for radius in (0.0, 1e-3, 0.01, 0.1):
            exact = double.smallest_difference(radius)
            assert single.smallest_difference(radius) < exact
            assert single.smallest_difference(radius) == pytest.approx(exact, rel=1e-3, abs=1e-4)


def mlp_in_fp64(net: nn.Module) -> nn.Module:
    copy = mlp().double().eval()
    copy.load_state_dict(net.state_dict())
    return copy


def test_numbers_that_overflow_give_no_radius() -> None:
    layers = nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    net = nn.Sequential(*layers)
    with torch.no_grad():
        layers[1].weight.fill_(1e20)
        layers[3].weight.copy_(torch.tensor([[1e20], [-1e20]]).expand(2, 4))
    assert relaxed(net, torch.full((1, 2, 2), 1e-21), 2.0).certified_radius(1.0) == 0
    assert relaxed(net, torch.ones(1, 2, 2), 2.0).certified_radius(1.0) == 0


def test_large_nets_have_the_bound_of_the_linear_region(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    view, images = AttackView(mlp().eval()), torch.randn(3, 1, 28, 28)
    larger = lower_bound(view, images)
    monkeypatch.setattr(module, "MAX_RELAXED_KINKS", 149)
    smaller = lower_bound(view, images)
    assert (smaller.bound <= smaller.radius).all()
    assert (larger.bound > 10 * smaller.bound).all()
    assert (larger.bound < larger.nearest).all()


def test_a_value_that_is_changed_in_place_after_its_relu() -> None:
    """As in residual blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = self.first(images.flatten(1))
            y = torch.relu(x)
            x += y
            return self.last(torch.relu(x))

    torch.manual_seed(0)
    net, image = Block().double(), torch.randn(1, 2, 3, dtype=torch.float64)
    bounds = relaxed(net, image, 2.0)
    for radius in (0.01, 0.1, 1.0):
        with torch.no_grad():
            clean = net(image[None]).argmax()
            logits = net(points_in_ball(image, radius, 2.0))
        others = logits.clone()
        others[:, clean] = -math.inf
        assert bounds.smallest_difference(radius) <= (logits[:, clean] - others.amax(dim=1)).min()
