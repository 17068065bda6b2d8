"""FGS against closed forms and against exhaustive search."""

import pytest
import torch
from torch import Tensor

from pipeline.attacks import fgs
from pipeline.models.attack_view import AttackView
from tests.helpers import nets


def linear(num_classes: int, dimension: int = 12) -> tuple[AttackView, Tensor, Tensor]:
    torch.manual_seed(num_classes)
    net = nets.linear(torch.randn(num_classes, dimension), torch.randn(num_classes))
    return AttackView(net), torch.randn(40, 1, 1, dimension), torch.arange(40) % num_classes


def search(view: AttackView, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    graph = view.forward_with_grad(images)
    direction = fgs.fgs_direction(view, graph, labels)
    return direction.sign, fgs.smallest_eps(view, images, direction, labels, graph.logits.detach())


def test_the_direction_of_a_net_that_is_sure() -> None:
    """In fp32 its cross-entropy's gradient has lost the label's part."""
    view, images, _ = linear(5)
    with torch.no_grad():
        view.net[1].weight.mul_(30)
    logits = view(images).double()
    top = logits.topk(2, dim=1).values
    assert (top[:, 0] - top[:, 1] > 20).sum() > 20
    labels = logits.argmax(dim=1)
    weight = view.net[1].weight.detach().double()
    others = logits.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    expected = (others @ weight - weight[labels]).view_as(images)
    direction = fgs.fgs_direction(view, view.forward_with_grad(images), labels)
    assert torch.equal(direction.sign.double(), expected.sign())
    rounded = fgs.fgs_direction(view, view.forward_with_grad(images), labels, "rounded").sign
    assert (rounded.double() == expected.sign()).double().mean() < 0.95  # it lacks the label's part
    slope = expected.abs().flatten(1).sum(dim=1)
    torch.testing.assert_close(direction.slope.double(), slope, rtol=1e-5, atol=0)


def test_two_linear_classes_have_a_closed_form() -> None:
    view, images, labels = linear(2)
    sign, eps = search(view, images, labels)
    w = view.net[1].weight[1] - view.net[1].weight[0]
    away = torch.where(labels == 0, 1.0, -1.0)[:, None] * w.detach()
    assert torch.equal(sign.flatten(1), away.sign())
    margin = fgs.margins(view(images), labels).detach()
    expected = (margin / w.abs().sum()).clamp(min=0)
    assert torch.allclose(eps.float(), expected, rtol=6e-4)
    assert (eps[margin <= 0] == 0).all()


def test_the_search_brackets_every_image() -> None:
    torch.manual_seed(0)
    view = AttackView(nets.smooth())
    images = 2 * torch.randn(60, 3, 32, 32)
    logits = view(images).detach()
    labels = logits.argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 10  # some are misclassified from the start
    sign, eps = search(view, images, labels)
    correct = logits.argmax(dim=1) == labels
    assert (eps[~correct] == 0).all()
    for n in correct.nonzero().flatten().tolist():
        below = eps[n].item() * 2 ** (-1.001 * fgs.NUM_OCTAVES / fgs.NUM_LATTICE_STEPS)
        one = (images[n : n + 1], sign[n : n + 1], labels[n : n + 1])
        at = fgs.correct_after_fgs(view, *one, [below, eps[n].item()])
        assert at.tolist() == [[True, False]]


def test_an_image_that_nothing_changes() -> None:
    net = nets.linear(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]))
    view, images = AttackView(net), torch.ones(2, 1, 1, 2)
    sign, eps = search(view, images, torch.tensor([0, 1]))
    assert (sign == 0).all()
    assert eps.tolist() == [float("inf"), 0.0]


def test_values_that_are_not_finite_count_as_misclassified() -> None:
    net = nets.linear(torch.full((2, 2), torch.nan), torch.zeros(2))
    view, images, labels = AttackView(net), torch.ones(2, 1, 1, 2), torch.tensor([0, 1])
    sign, eps = search(view, images, labels)
    assert (sign == 0).all()
    assert eps.tolist() == [0.0, 0.0]
    assert not fgs.correct_after_fgs(view, images, sign, labels, [0.1]).any()


def test_points_stay_in_the_valid_range() -> None:
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.min().item(), x.max().item()))
            return x.flatten(1)

    view = AttackView(Watching(), bounds=(0.0, 1.0))
    images, labels = torch.rand(5, 1, 1, 3), torch.zeros(5, dtype=torch.long)
    direction = fgs.fgs_direction(view, view.forward_with_grad(images), labels)
    fgs.correct_after_fgs(view, images, direction.sign, labels, [0.5, 3.0])
    assert min(low for low, _ in seen) >= 0
    assert max(high for _, high in seen) <= 1


@pytest.mark.parametrize("place", [0, 1, 1000, fgs.NUM_LATTICE_STEPS])
def test_the_lattice(place: int) -> None:
    eps = fgs._lattice(torch.tensor([place]))
    assert eps.item() == pytest.approx(2 ** (-20 + 24 * place / 2**15))
    assert eps.float().double() == eps
