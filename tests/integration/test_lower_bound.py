"""The lower bound of the distance to the decision boundary."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks import lower_bound as module
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.lower_bound import (
    NoLowerBound,
    lower_bound,
    lower_bound_unchecked,
    why_not_computable,
)
from pipeline.attacks.norms import dual_exponent, per_sample_norm
from pipeline.config import AttackConfig, DataConfig
from pipeline.evaluation.attack_space import Normalised
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import KinkState, RecordActivationPattern
from pipeline.models.paper_nets import lenet, mlp
from tests.helpers import nets
from tests.helpers.exhaustive import exact_distance

CPU = torch.device("cpu")
NORMS = [2.0, math.inf, 1.5]


NETS = [nets.every_layer, nets.pool_before_relu]


def setting(make: Callable[[], nn.Module], count: int = 4) -> tuple[AttackView, Tensor]:
    torch.manual_seed(0)
    net = make().double()
    return AttackView(net), torch.randn(count, 2, 10, 10, dtype=torch.float64)


def pattern_of(view: AttackView, image: Tensor) -> list[KinkState]:
    with torch.no_grad(), RecordActivationPattern() as record:
        view(image[None])
    return record.pattern


def same(a: list[KinkState], b: list[KinkState]) -> bool:
    states = zip((s[0] for s in a), (s[0] for s in b), strict=True)
    return all(torch.allclose(u.double(), v.double()) for u, v in states)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_nets_have_a_closed_form(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 30, dtype=dtype), torch.randn(5, dtype=dtype)
    images = torch.randn(20, 1, 5, 6, dtype=dtype)
    result = lower_bound(AttackView(nets.linear(weight, bias)), images, p)
    logits = (images.flatten(1) @ weight.T + bias).double()
    clean = logits.argmax(dim=1)
    gaps = logits.gather(1, clean[:, None]) - logits
    differences = (weight[clean][:, None] - weight).double()
    norms = torch.linalg.vector_norm(differences, dual_exponent(p), dim=2)
    expected = (gaps / norms).nan_to_num(torch.inf).amin(dim=1)
    assert result.exact.all()
    assert result.radius.isinf().all()
    eps = torch.finfo(dtype).eps
    assert torch.allclose(result.nearest.double(), expected, rtol=100 * eps)
    assert (result.bound <= result.nearest).all()
    smallest = norms.masked_fill(norms == 0, torch.inf).amin(dim=1)
    margin = 20 * eps * logits.abs().amax(dim=1) / smallest
    assert (result.bound <= expected).all()
    assert (result.bound >= (1 - 100 * eps) * expected - margin).all()


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_it_is_below_the_exact_distance(p: float) -> None:
    """Two-layer nets, whose regions are enumerated."""
    torch.manual_seed(1)
    layers = nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)
    net = nn.Sequential(*layers).double()
    images = torch.randn(40, 1, 2, 3, dtype=torch.float64)
    with torch.no_grad():  # many images near a boundary
        layers[3].bias -= net(images).mean(dim=0)
    result = lower_bound(AttackView(net), images, p)
    exact = [exact_distance(net, image, p).distance for image in images]
    distance = torch.tensor(exact, dtype=torch.float64)
    assert (result.bound <= distance).all()
    assert torch.allclose(result.bound[result.exact], distance[result.exact], rtol=1e-6)
    assert 5 < result.exact.sum() < 55
    # With a margin for rounding, what is not called exact is not.
    assert (result.radius < result.nearest)[~result.exact].all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("make", NETS)
def test_the_pattern_holds_within_the_radius(make: Callable[[], nn.Module], p: float) -> None:
    view, images = setting(make)
    for image, radius in zip(images, lower_bound(view, images, p).radius, strict=True):
        held = pattern_of(view, image)
        directions = torch.randn(30, *image.shape, dtype=torch.float64)
        directions[::2] = directions[::2].sign()
        lengths = radius * 0.999 / per_sample_norm(directions, p)
        assert radius > 0
        for step in directions * lengths[:, None, None, None]:
            assert same(pattern_of(view, image + step), held)


@pytest.mark.parametrize("make", NETS)
def test_the_pattern_changes_at_the_radius(make: Callable[[], nn.Module]) -> None:
    """Along the gradient of one of the units, which autograd finds in the net itself."""
    view, images = setting(make, count=1)
    for image, radius in zip(images, lower_bound(view, images).radius, strict=True):
        steps = [radius * 1.001 * unit for unit in unit_gradients(view, image)]
        held = pattern_of(view, image)
        ends = (pattern_of(view, image + sign * step) for step in steps for sign in (1, -1))
        assert not all(same(end, held) for end in ends)


def unit_gradients(view: AttackView, image: Tensor) -> list[Tensor]:
    """Directions of the kinks' gradients, from the inputs of activations and pools."""
    values: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        values.append(kinks_of(layer, inputs[0].clone()))

    kinds = nn.ReLU | nn.LeakyReLU | nn.Hardtanh | nn.MaxPool2d
    layers = [layer for layer in view.net.modules() if isinstance(layer, kinds)]
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    x = image.clone().requires_grad_()
    view(x[None])
    for handle in handles:
        handle.remove()
    kinks = torch.cat(values)
    rows = torch.eye(len(kinks), dtype=kinks.dtype)
    (gradients,) = torch.autograd.grad(kinks, x, rows, is_grads_batched=True)
    gradients = gradients[gradients.flatten(1).norm(dim=1) > 0]
    return list(gradients / gradients.flatten(1).norm(dim=1)[:, None, None, None])


def kinks_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Values whose sign changes at the kinks of one layer."""
    if not isinstance(layer, nn.MaxPool2d):
        return x.flatten()
    size, stride, padding = layer.kernel_size, layer.stride, layer.padding
    right = 2 if layer.ceil_mode else padding
    padded = F.pad(x, (padding, right, padding, right), value=-1e3)
    windows = F.unfold(padded, size, stride=stride).view(x.shape[1], size**2, -1)
    return (windows.amax(dim=1, keepdim=True) - windows).flatten()


def test_a_large_net_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view, images = setting(nets.every_layer)
    monkeypatch.setattr(module, "MAX_JACOBIAN_ENTRIES", 1000)
    with pytest.raises(NoLowerBound, match="too costly"):
        lower_bound(view, images)


def test_other_nets_are_refused() -> None:
    with pytest.raises(NoLowerBound, match="piecewise linear: gelu"):
        lower_bound(AttackView(nets.smooth()), torch.randn(2, 3, 32, 32))
    with pytest.raises(NoLowerBound, match="fp32"):
        lower_bound(AttackView(mlp(), torch.bfloat16), torch.randn(2, 1, 28, 28))


class InPlace(nn.Module):
    """Uses the tensor that an activation has changed, not the activation's result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        nn.init.constant_(self.linear.bias, -1.0)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        F.relu_(logits)
        return logits


def test_in_place_activations_without_their_result_are_refused() -> None:
    torch.manual_seed(0)
    view, images = AttackView(InPlace()), torch.randn(2, 1, 2, 3)
    with pytest.raises(NoLowerBound, match="in-place"):
        lower_bound(view, images)
    assert lower_bound_unchecked(view, images, 2.0).bound.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "count", "p"), [(mlp, 20, 2.0), (mlp, 20, math.inf), (lenet, 3, 2.0)]
)
def test_deepfool_is_above_it(make: Callable[[], nn.Module], count: int, p: float) -> None:
    torch.manual_seed(0)
    view, images = AttackView(make().eval()), torch.randn(count, 1, 28, 28)
    result = lower_bound(view, images, p)
    perturbation = deepfool(view, images, AttackConfig(norm=p))
    assert (result.bound > 0).all()
    assert (result.bound <= per_sample_norm(perturbation.delta, p)).all()


@pytest.mark.parametrize(
    ("make", "count", "p"), [(mlp, 20, 2.0), (mlp, 20, math.inf), (lenet, 3, 2.0)]
)
def test_deepfool_is_exact_where_it_is(make: Callable[[], nn.Module], count: int, p: float) -> None:
    """Images near the boundary."""
    torch.manual_seed(0)
    view = AttackView(make().eval().double())
    images = torch.randn(count, 1, 28, 28, dtype=torch.float64)
    config = AttackConfig(norm=p, overshoot=0.0, max_iterations=20)
    near = images + (1 - 1e-5) * deepfool(view, images, config).delta
    result = lower_bound(view, near, p)
    distance = per_sample_norm(deepfool(view, near, config).delta, p)
    assert result.exact.sum() >= count / 4
    assert torch.allclose(result.bound[result.exact], distance[result.exact], rtol=1e-4)


def test_an_image_alone_is_treated_as_in_a_batch() -> None:
    torch.manual_seed(0)
    view, images = AttackView(mlp().eval(), min_batch_size=8), torch.randn(4, 1, 28, 28)
    together = lower_bound(view, images)
    for number in range(4):
        alone = lower_bound(view, images[number : number + 1])
        assert torch.equal(alone.radius[0], together.radius[number])
        assert torch.equal(alone.nearest[0], together.nearest[number])
    assert len(lower_bound(view, images[:0]).bound) == 0


def test_with_dropout_each_image_has_its_mask() -> None:
    """Within the radius the net with the mask is affine."""
    torch.manual_seed(0)
    view = AttackView(nets.dropout_mlp().double(), dropout=True)
    images = torch.randn(8, 1, 28, 28, dtype=torch.float64)
    view.draw_dropout_masks(8)
    radius = lower_bound(view, images).radius
    with torch.no_grad():
        for _ in range(5):
            directions = torch.randn_like(images)
            lengths = 0.999 * radius / per_sample_norm(directions)
            step = lengths[:, None, None, None] * directions
            second = view(images + step) + view(images - step) - 2 * view(images)
            assert second.abs().max() < 1e-12


def test_with_bounds_exact_needs_a_point_within() -> None:
    net = nets.linear(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 0.8]))
    images = torch.tensor([[[[0.9, 0.5]]], [[[0.7, 0.5]]]])  # the boundary is at 0.8
    inside = lower_bound(AttackView(net, bounds=(0.0, 1.0)), images)
    outside = lower_bound(AttackView(net, bounds=(0.0, 0.75)), images[1:])
    assert inside.exact.all()
    assert not outside.exact.any()
    assert outside.bound.item() == pytest.approx(0.1, rel=1e-3)
    assert inside.bound.tolist() == pytest.approx([0.1, 0.1], rel=1e-3)


def test_a_net_that_normalises_its_input() -> None:
    """Division by a buffer is affine; division by anything else is not known to be."""
    torch.manual_seed(0)
    net, data = mlp().eval(), DataConfig(channels=1, mean=[0.3], std=[0.25])
    pixels = torch.rand(3, 1, 28, 28)
    inputs = lower_bound(AttackView(net), (pixels - 0.3) / 0.25)
    result = lower_bound(AttackView(Normalised(net, data)), pixels)
    assert torch.allclose(result.bound, 0.25 * inputs.bound, rtol=1e-3)
    other = nn.Sequential(DividedByItself(), net)
    assert "piecewise linear: div" in why_not_computable(AttackView(other), (1, 28, 28), CPU)
    assert why_not_computable(AttackView(net), (1, 28, 28), CPU) == ""


class DividedByItself(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / (images + 2.0)


def test_an_image_on_a_kink_has_no_radius() -> None:
    layers = nn.Flatten(), nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)
    result = lower_bound(AttackView(nn.Sequential(*layers)), torch.zeros(1, 1, 2, 3))
    assert result.radius.item() == 0
    assert result.bound.item() == 0
    assert not result.exact


def test_a_pool_over_dead_units_has_no_kink() -> None:
    """All four are off, and turn on later than the image's class changes."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(-3.0)
    view = AttackView(nn.Sequential(net, nn.Linear(1, 2)))
    result = lower_bound(view, torch.zeros(1, 1, 2, 2))
    assert result.radius.item() == pytest.approx(3.0, rel=1e-4)
    assert result.nearest.isinf().all()


def test_logits_that_overflow_give_no_bound() -> None:
    net = nets.linear(torch.full((2, 4), 3e38), torch.zeros(2))
    assert lower_bound(AttackView(net), torch.ones(1, 1, 2, 2)).bound.item() == 0
