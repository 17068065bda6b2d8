"""DeepFool against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.attacks.attack_state import Perturbation
from pipeline.attacks.deepfool import AttackOptions, deepfool
from pipeline.attacks.linearized_step import candidate_classes
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from tests.helpers import nets


def attack(
    net: torch.nn.Module, images: Tensor, config: AttackConfig, labels: Tensor | None = None
) -> tuple[Perturbation, Tensor]:
    perturbation = deepfool(AttackView(net), images, config, labels)
    return perturbation, perturbation.clean


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("dimension", [2, 12, 200])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_linear_nets_have_a_closed_form(num_classes: int, dimension: int, overshoot: float) -> None:
    torch.manual_seed(num_classes * dimension)
    weight = torch.randn(num_classes, dimension, dtype=torch.float64)
    bias = torch.randn(num_classes, dtype=torch.float64)
    images = torch.randn(20, 1, 1, dimension, dtype=torch.float64)
    config = AttackConfig(num_candidates=10, overshoot=overshoot)
    perturbation, label = attack(nets.linear(weight, bias), images, config)
    logits = images.flatten(1) @ weight.T + bias
    for n, k in enumerate(label.tolist()):
        others = [j for j in range(num_classes) if j != k]
        distances = [(logits[n, k] - logits[n, j]) / (weight[k] - weight[j]).norm() for j in others]
        nearest = torch.stack(distances).min()
        assert perturbation.delta[n].norm() == pytest.approx(
            (1 + overshoot) * nearest.item(), rel=1e-9
        )
    assert perturbation.flipped.all()
    assert (perturbation.iterations == 1).all()


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (math.inf, 1.0), (1.5, 3.0), (1.01, 101.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_nets_have_a_closed_form_in_every_norm(
    p: float, q: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 30, dtype=dtype), torch.randn(5, dtype=dtype)
    weight *= 1e-3  # as gradients of photos are: |w|^q leaves fp32's range
    images = torch.randn(40, 1, 5, 6, dtype=dtype)
    perturbation, label = attack(nets.linear(weight, bias), images, AttackConfig(norm=p))
    logits = images.flatten(1) @ weight.T + bias
    gaps = logits.gather(1, label[:, None]) - logits
    dual = torch.linalg.vector_norm((weight[label][:, None] - weight).double(), q, dim=2)
    nearest = (gaps / dual).where(dual > 0, torch.inf).amin(dim=1)
    expected = 1.02 * nearest
    rel = 1e-9 if dtype == torch.float64 else 1e-4
    assert torch.allclose(
        per_sample_norm(perturbation.delta.double(), p), expected.double(), rtol=rel
    )
    assert perturbation.flipped.all()


def test_a_perturbation_in_another_norm_is_larger_in_two() -> None:
    torch.manual_seed(0)
    view = AttackView(nets.smooth().double())
    images = 2 * torch.randn(30, 3, 32, 32, dtype=torch.float64)
    two, most = (deepfool(view, images, AttackConfig(norm=p)).delta for p in (2.0, math.inf))
    assert (per_sample_norm(two) < per_sample_norm(most)).all()
    assert (per_sample_norm(most, math.inf) < per_sample_norm(two, math.inf)).all()


def test_perturbed_images_stay_in_the_valid_range() -> None:
    torch.manual_seed(0)
    net = nets.linear(torch.randn(3, 12), torch.randn(3))
    images = torch.rand(60, 1, 3, 4)
    perturbation = deepfool(
        AttackView(net, bounds=(0.0, 1.0)), images, AttackConfig(max_iterations=100)
    )
    perturbed = images + perturbation.delta
    assert perturbed.min() >= -1e-6
    assert perturbed.max() <= 1 + 1e-6
    free = deepfool(AttackView(net), images, AttackConfig(max_iterations=100))
    left = ((images + free.delta).clamp(0, 1) != images + free.delta).flatten(1).any(dim=1)
    assert left.any()
    assert not left.all()
    assert torch.allclose(perturbation.delta[~left], free.delta[~left], atol=1e-6)
    assert (
        per_sample_norm(perturbation.delta[left & perturbation.flipped])
        > per_sample_norm(free.delta)[left & perturbation.flipped] * 0.99
    ).all()
    assert (AttackView(net)(perturbed).argmax(dim=1) != perturbation.clean)[
        perturbation.flipped
    ].all()


def test_towards_the_label_on_a_linear_net() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    images = torch.randn(10, 1, 1, 5, dtype=torch.float64)
    net = nets.linear(weight, bias)
    wrong = 1 - AttackView(net)(images).argmax(dim=1)
    perturbation, _ = attack(net, images, AttackConfig(), labels=wrong)
    gap = (images.flatten(1) @ (weight[0] - weight[1])).abs()
    expected = 1.02 * gap / (weight[0] - weight[1]).norm()
    assert torch.allclose(perturbation.delta.flatten(1).norm(dim=1), expected)
    assert (perturbation.prediction == wrong).all()


def test_a_kink_takes_two_steps() -> None:
    # f1 - f0 = -3 + relu(x - 1) + 0.5 x in one dimension: slope 0.5 below x = 1, then 1.5.
    net = torch.nn.Sequential(torch.nn.Flatten(), Kinked())
    x = torch.tensor([[[[0.0]]]], dtype=torch.float64)
    perturbation, _ = attack(net, x, AttackConfig(num_candidates=2))
    # Step 1 from f(0) = -3: 3 / 0.5 = 6, f(6.12) > 0 already: 6 with the overshoot.
    assert perturbation.delta.item() == pytest.approx(1.02 * 6)
    perturbation, _ = attack(net, 7 * torch.ones_like(x), AttackConfig(num_candidates=2))
    # From f(7) = 6.5 along slope 1.5: 4.3333 to 2.6667, where f(2.58) = -0.1300 < 0.
    assert perturbation.delta.item() == pytest.approx(-1.02 * 6.5 / 1.5)
    perturbation, _ = attack(net, 1.5 * torch.ones_like(x), AttackConfig(num_candidates=2))
    # From f(1.5) = -1.75 along slope 1.5: to 2.6667, f = 0 there: one exact step.
    assert perturbation.delta.item() == pytest.approx(1.02 * 1.75 / 1.5)


class Kinked(torch.nn.Module):
    """Two logits whose difference has a kink."""

    def forward(self, x: Tensor) -> Tensor:
        f = -3 + torch.relu(x - 1) + 0.5 * x
        return torch.cat([torch.zeros_like(f), f], dim=1)


class Slowing(torch.nn.Module):
    """The difference of logits is -x squared: each step goes half of the way, and never crosses."""

    def forward(self, x: Tensor) -> Tensor:
        f = -(x.flatten(1) ** 2)
        return torch.cat([torch.zeros_like(f), f], dim=1)


def test_samples_that_never_flip_are_told() -> None:
    images = torch.tensor([[[[8.0]]], [[[2.0]]]], dtype=torch.float64)
    perturbation, _ = attack(Slowing(), images, AttackConfig(num_candidates=2, max_iterations=3))
    assert not perturbation.flipped.any()
    assert (perturbation.iterations == 3).all()
    # Newton's steps on x^2: x is halved three times, so 7/8 of the way is gone.
    assert torch.allclose(perturbation.delta, -1.02 * 7 / 8 * images)


class Counting(torch.nn.Module):
    """Counts the images that pass."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.net(x)


def test_finished_samples_leave_the_batch() -> None:
    torch.manual_seed(0)
    net = Counting(nets.smooth())
    images = 3 * torch.randn(30, 3, 32, 32)
    perturbation, _ = attack(net, images, AttackConfig(max_iterations=20))
    sizes = net.sizes  # the first iteration starts from the clean forward
    remaining = [
        int((perturbation.iterations > k).sum()) for k in range(int(perturbation.iterations.max()))
    ]
    assert sizes == [n for n in remaining for _ in range(2)]
    assert len(set(remaining)) > 1


def test_a_sample_alone_is_treated_as_in_a_batch() -> None:
    torch.manual_seed(1)
    net = nets.smooth().double()
    images = 2 * torch.randn(12, 3, 32, 32, dtype=torch.float64)
    together, _ = attack(net, images, AttackConfig())
    for n in range(12):
        alone, _ = attack(net, images[n : n + 1], AttackConfig())
        assert torch.allclose(alone.delta[0], together.delta[n], rtol=1e-6, atol=1e-12)
        assert alone.iterations[0] == together.iterations[n]


@pytest.mark.parametrize("search", ["exhaustive", "pruned"])
def test_a_vanished_gradient_gives_no_nan(search: str) -> None:
    net = nets.linear(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 0.0]))
    config = AttackConfig(candidate_search=search)
    perturbation, _ = attack(net, torch.randn(5, 1, 2, 2), config)
    assert (perturbation.delta == 0).all()
    assert not perturbation.flipped.any()
    assert perturbation.no_gradient.all()
    assert (perturbation.iterations == 1).all()


def test_pruning_takes_the_distances_of_the_heads_rows_wherever_it_is_defined() -> None:
    torch.manual_seed(0)
    net, images = nets.HeadFirst(), torch.randn(20, 3, 2, 2)
    view, source = AttackView(net), torch.arange(20) % 10
    classes = (source[:, None] + torch.arange(1, 4)) % 10
    expected = (net.head.weight[source][:, None] - net.head.weight[classes]).norm(dim=2)
    assert torch.equal(view.class_weight_distances(source, classes, 10), expected)
    assert (view.class_weight_distances(source, classes, 11) == 1).all()  # no layer has 11 rows
    pruned, _ = attack(net, images, AttackConfig(candidate_search="pruned", pruning_factor=1e6))
    exhaustive, _ = attack(net, images, AttackConfig(candidate_search="exhaustive"))
    assert torch.allclose(pruned.delta, exhaustive.delta, rtol=1e-5, atol=1e-7)


def test_logits_that_are_no_numbers_are_no_other_class() -> None:
    class Overflowing(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1).sum(dim=1)
            logits = torch.stack([total * 0, 1 - total], dim=1)
            return logits + torch.where(total[:, None] > 0.5, torch.nan, 0.0)

    perturbation, _ = attack(Overflowing(), torch.full((1, 1, 2, 2), 0.05), AttackConfig())
    assert not perturbation.flipped.any()


@pytest.mark.parametrize("search", ["exhaustive", "pruned"])
def test_a_gradient_beyond_fp16s_range_is_no_near_boundary(search: str) -> None:
    """Its distance would be 0, and the step not a number."""
    weight = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 90], [2, 0, 0, 0]])  # 90 times the scale
    net = nets.linear(weight, torch.tensor([5.0, -10, 0]))
    view, images = AttackView(net, torch.float16), torch.full((1, 1, 2, 2), 0.05)
    perturbation = deepfool(view, images, AttackConfig(candidate_search=search))
    assert perturbation.delta.isfinite().all()
    assert perturbation.flipped.all()
    assert net(images + perturbation.delta).argmax() == 2


def test_candidates_are_the_top_classes_without_the_label() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0, 3.0], [0.0, 9.0, 2.0, 1.0]])
    assert candidate_classes(logits, torch.tensor([0, 1]), 3).tolist() == [[2, 3], [2, 3]]
    assert candidate_classes(logits, torch.tensor([0, 1]), 10).tolist() == [[2, 3, 1], [2, 3, 0]]
    tie = torch.tensor([[1.0, 1.0, 1.0, 1.0]])  # the label may fall outside the top two
    assert candidate_classes(tie, torch.tensor([3]), 2).shape == (1, 1)


def test_nothing_is_changed_but_the_result() -> None:
    net = nets.smooth().train()
    images = torch.randn(4, 3, 32, 32)
    before = images.clone()
    perturbation, _ = attack(net, images, AttackConfig())
    assert torch.equal(images, before)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not perturbation.delta.requires_grad
    assert perturbation.steps == []


@pytest.mark.parametrize("at_once", [None, 4])
def test_without_labels_it_leaves_the_predicted_class(at_once: int | None) -> None:
    torch.manual_seed(0)
    net = nets.smooth().double()
    images = torch.randn(10, 3, 32, 32, dtype=torch.float64)
    prediction = net(images).argmax(dim=1)
    with_labels, _ = attack(net, images, AttackConfig(), prediction)
    without_labels = deepfool(
        AttackView(net), images, AttackConfig(), options=AttackOptions(at_once=at_once)
    )
    assert torch.equal(without_labels.clean, prediction)
    assert torch.allclose(without_labels.delta, with_labels.delta, rtol=1e-9)
    assert torch.equal(without_labels.prediction, with_labels.prediction)
    assert torch.equal(without_labels.iterations, with_labels.iterations)
