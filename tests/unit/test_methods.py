"""What training adds to the cross-entropy: each method against its definition."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from pipeline.config import (
    AdversarialConfig,
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    ParsevalConfig,
    RegularizerConfig,
)
from pipeline.errors import UserError
from pipeline.methods.deep_defense import matching
from pipeline.methods.parseval import Parseval, retracted
from pipeline.models.attack_view import AttackView
from pipeline.models.paper_nets import lenet
from pipeline.training.objective import Objective
from pipeline.training.step_stats import is_nonfinite
from tests.helpers.in_process import in_process
from tests.helpers.runs import expect_error

PAPER = RegularizerConfig(lam=15, c=25, d=5)


def objective(net: nn.Module, method: str, gradient: str = "unrolled") -> Objective:
    options = ObjectiveConfig(method=method, adversarial=AdversarialConfig(eps=0.1))
    regularizer = replace(PAPER, gradient=gradient)
    return Objective(net, FinetuneConfig(objective=options, regularizer=regularizer))


def gradients(loss_of: Objective, batch: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    loss_of.zero_grad()
    loss_of(*batch, use_methods=True).loss.backward()
    return [p.grad.clone() for p in loss_of.net.parameters()]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return lenet().double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 28, 28, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 10, (6,), generator=generator)


def test_fgs_examples_are_mixed_in(net: nn.Module, batch: tuple) -> None:
    images, labels = batch
    points = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(net(points), labels), points)
    examples = images + 0.1 * slope.sign()
    expected = 0.5 * F.cross_entropy(net(images), labels) + 0.5 * F.cross_entropy(
        net(examples), labels
    )
    expected_gradients = torch.autograd.grad(expected, list(net.parameters()))
    loss_of = objective(net, "adversarial_2")
    assert loss_of(*batch, use_methods=True).loss.item() == pytest.approx(
        expected.item(), rel=1e-12
    )
    for actual, expected_gradient in zip(
        gradients(loss_of, batch), expected_gradients, strict=True
    ):
        torch.testing.assert_close(actual, expected_gradient, rtol=1e-9, atol=1e-12)
    alone = loss_of(*batch, use_methods=False).loss
    assert alone.item() == pytest.approx(F.cross_entropy(net(images), labels).item(), rel=1e-12)


@pytest.mark.parametrize("gradient", ["unrolled", "one_step"])
def test_methods_add_up(net: nn.Module, batch: tuple, gradient: str) -> None:
    names = ("deep_defense", "adversarial_2", "clean")
    *parts, clean = [gradients(objective(net, name, gradient), batch) for name in names]
    both = objective(net, "deep_defense+adversarial_2", gradient)
    for one, two, base, sum_ in zip(*parts, clean, gradients(both, batch), strict=True):
        torch.testing.assert_close(one + two - base, sum_, rtol=1e-9, atol=1e-12)
    assert both(*batch, use_methods=True).ratio.gt(0).all()


@pytest.mark.parametrize("gradient", ["unrolled", "boundary", "one_step"])
def test_the_regulariser_reaches_only_the_layers_asked_for(
    net: nn.Module, batch: tuple, gradient: str
) -> None:
    def with_layers(*layers: str, lam: float = 15) -> Objective:
        options = RegularizerConfig(lam=lam, c=25, d=5, gradient=gradient, layers=list(layers))
        return Objective(net, FinetuneConfig(regularizer=options))

    clean, whole = gradients(with_layers(lam=0), batch), gradients(with_layers(), batch)
    masked = with_layers("5.*", "0.bias")
    assert masked(*batch, use_methods=True).loss.item() == pytest.approx(
        with_layers()(*batch, use_methods=True).loss.item(), rel=1e-12
    )
    names = [name for name, _ in net.named_parameters()]
    for name, actual, plain, full in zip(
        names, gradients(masked, batch), clean, whole, strict=True
    ):
        expected = full if name in ("5.weight", "5.bias", "0.bias") else plain
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(full, plain)
    with pytest.raises(UserError, match=r"fc1\.\* matches none .* 0\.weight, 0\.bias"):
        matching(net, ["5.*", "fc1.*"])


def test_parseval_moves_singular_values_as_the_closed_form_says() -> None:
    torch.manual_seed(0)
    for shape in ((4, 7), (7, 4)):
        matrix = torch.randn(1, *shape, dtype=torch.float64)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        s = torch.tensor([[0.4, 0.8, 1.1, 1.3]], dtype=torch.float64)
        matrix = u @ torch.diag_embed(s) @ v
        for _ in range(3):
            expected = 1.1 * s - 0.1 * s**3
            matrix = retracted(matrix, 0.1)
            singular_values = torch.linalg.svdvals(matrix).sort().values
            torch.testing.assert_close(singular_values, expected.sort().values)
            assert (expected - 1).norm() < (s - 1).norm()
            s = expected


def test_parseval_projects_columns_of_every_layer(net: nn.Module) -> None:
    grouped = nn.Sequential(net, nn.Flatten(), nn.Conv2d(4, 6, 3, groups=2).double())
    options = ObjectiveConfig(method="parseval", parseval=ParsevalConfig(beta=0.01, columns=0.3))
    method = Parseval(FinetuneConfig(objective=options), AttackView(grouped))
    before = {name: p.detach().clone() for name, p in grouped.named_parameters()}
    method.after_step(1)
    for name, parameter in grouped.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, before[name])
            continue
        groups = 2 if name.startswith("2.") else 1
        old = before[name].reshape(groups, len(parameter) // groups, -1)
        new = parameter.detach().reshape(old.shape)
        moved = (old != new).any(dim=(0, 1))
        assert moved.sum() == max(1, round(0.3 * old.shape[2])), name
        part = old[:, :, moved]
        torch.testing.assert_close(new[:, :, moved], retracted(part, 0.01))
        torch.testing.assert_close(
            retracted(part, 0.01), 1.01 * part - 0.01 * part @ part.mT @ part
        )
    again = [p.detach().clone() for p in grouped.parameters()]
    method.after_step(2)  # other columns
    assert any(
        not torch.equal(a != b, c != d)
        for a, b, c, d in zip(before.values(), again, again, grouped.parameters(), strict=True)
    )


def test_parseval_changes_a_shared_weight_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    options = ObjectiveConfig(method="parseval", parseval=ParsevalConfig(beta=0.01, columns=1.0))
    net = nn.Sequential(first, second)
    before = first.weight.detach().clone()
    Parseval(FinetuneConfig(objective=options), AttackView(net)).after_step(1)
    torch.testing.assert_close(first.weight.detach(), retracted(before[None], 0.01)[0])


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parseval_refuses_weights_that_are_computed(norm: Callable) -> None:
    net = nn.Sequential(nn.Flatten(), norm(nn.Linear(4, 4)))
    with pytest.raises(UserError, match="the weight of 1 is computed"):
        objective(net, "parseval")


def test_mistakes(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adversarial\.eps: adversarial_2 needs it"):
        Objective(net, FinetuneConfig(objective=ObjectiveConfig(method="adversarial_2")))
    with pytest.raises(UserError, match="no method 'x'; use clean, deep_defense"):
        objective(net, "deep_defense+x")
    with pytest.raises(UserError, match="cannot be imported"):
        objective(net, "tests.helpers.nets:nothing")
    with pytest.raises(UserError, match="no subclass"):
        objective(net, "tests.helpers.nets:linear")
    with pytest.raises(ValueError, match=r"weight must be from 0 to 1"):
        AdversarialConfig(weight=1.5)
    line = expect_error(in_process, "--output", tmp_path / "x", "--regularizer.layers", "[fc9.*]")
    assert "regularizer.layers: fc9.* matches none" in line


def test_a_term_that_is_not_finite_is_noticed(net: nn.Module, batch: tuple) -> None:
    loss_of = objective(net, "tests.helpers.methods:Endless")
    assert is_nonfinite(loss_of(*batch, use_methods=True)).all()
    assert not is_nonfinite(loss_of(*batch, use_methods=False)).any()


def test_frozen_parameters_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    net[0].requires_grad_(False)
    options = FinetuneConfig(
        objective=ObjectiveConfig(method="parseval"), model=ModelConfig(freeze_batch_norm=True)
    )
    before = net[0].weight.clone()
    Objective(net, options).after_step(1)
    assert torch.equal(net[0].weight, before)
