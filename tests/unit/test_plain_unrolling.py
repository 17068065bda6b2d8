"""The regulariser's gradient equals that of `tests.helpers.unrolled`, a plain unrolling.

On nets of every kind, in any norm, along boundary and loss, with and without dropout.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, RegularizerConfig
from pipeline.training.objective import make_objective
from tests.helpers import nets, unrolled
from tests.helpers.gradients import (
    CONFIG,
    SMALL_NETS,
    cosine,
    gradient,
    gradient_by,
    plain_gradient,
    setting,
    with_attack,
)

PIECEWISE_AND_SMOOTH = ["lenet", "tests.helpers.nets:smooth"]


def assert_same_gradient(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig, tolerance: float
) -> None:
    actual = gradient_by(net, images, labels, config)
    expected = plain_gradient(net, images, labels, config)
    assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("name", SMALL_NETS)
def test_on_every_net(name: str) -> None:
    net, images, labels = setting(name)
    losses = make_objective(net, CONFIG)(images, labels, use_methods=True)
    assert losses.iterations.max() >= 2  # something was unrolled
    assert set(losses.correct.tolist()) == {True, False}
    actual, expected = gradient_by(net, images, labels), plain_gradient(net, images, labels)
    assert cosine(actual, expected) > 0.99999
    assert (actual - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
def test_parameters_whose_gradients_share_memory(kind: str) -> None:
    """The gradients of a batch in parts are summed without changing those of other parameters."""
    net, images, labels = setting("tests.helpers.nets:embedded")
    config = with_attack(kind)
    whole = gradient_by(net, images, labels, config)
    parts = gradient_by(net, images, labels, replace(config, max_images=1))
    assert (parts - whole).norm() < 1e-9 * whole.norm()


@pytest.mark.parametrize("name", ["mlp", "lenet", "tests.helpers.nets:smooth"])
def test_from_the_overshot_point(name: str) -> None:
    net, images, labels = setting(name)
    config = with_attack(linearize_at="overshot")
    actual = gradient_by(net, images, labels, config)
    expected = plain_gradient(net, images, labels, config)
    assert (actual - expected).norm() < 1e-9 * expected.norm()
    from_current_point = plain_gradient(net, images, labels)
    assert (actual - from_current_point).norm() > 1e-6 * expected.norm()


@pytest.mark.parametrize("members", ["T", "F"])
def test_on_batches_that_are_all_right_or_all_wrong(members: str) -> None:
    net, images, _ = setting("lenet")
    with torch.no_grad():
        prediction = net(images).argmax(dim=1)
    labels = prediction if members == "T" else (prediction + 1) % 10
    assert_same_gradient(net, images, labels, CONFIG, 1e-9)


@pytest.mark.parametrize("p", [1.3, 3.0, math.inf])  # 2: on every net
@pytest.mark.parametrize("name", PIECEWISE_AND_SMOOTH)
def test_in_any_norm(name: str, p: float) -> None:
    net, images, labels = setting(name)
    for start in ("current", "overshot"):
        config = with_attack(norm=p, max_iterations=3, linearize_at=start)
        assert_same_gradient(net, images, labels, config, 1e-8)


@pytest.mark.parametrize("p", [1.3, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("name", PIECEWISE_AND_SMOOTH)
def test_of_steps_along_the_loss_gradient(name: str, p: float) -> None:
    net, images, labels = setting(name)
    for iterations in (1, 3):
        config = with_attack(norm=p, max_iterations=iterations, step_direction="loss_gradient")
        assert_same_gradient(net, images, labels, config, 1e-8)


@pytest.mark.parametrize("make_net", [nets.dropout_mlp, nets.smooth_with_dropout])
def test_with_dropout_inside_the_attack(make_net: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make_net().double()
    torch.manual_seed(1)
    images, labels = torch.randn(7, 1, 28, 28, dtype=torch.float64), torch.arange(7)
    config = with_attack()
    objective = make_objective(net, config, ModelConfig(attack_dropout=True))
    view = objective.view
    view.seed_dropout(5)
    net.zero_grad()
    objective(images, labels, use_methods=True).loss.backward()
    actual = gradient(net)

    def with_masks_of(row: int) -> Callable[[Tensor], Tensor]:
        return lambda x: view(x, torch.tensor([row]))

    net.zero_grad()
    for row in range(len(images)):
        part = slice(row, row + 1)
        loss = unrolled.loss(with_masks_of(row), images[part], labels[part], config)
        (loss / len(images)).backward()
    expected = gradient(net)
    assert (actual - expected).norm() < 1e-9 * expected.norm()
