"""The distance after one step along the loss's gradient, and the pass it shares."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import (
    AdversarialConfig,
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    RegularizerConfig,
    RuntimeConfig,
)
from pipeline.config.checks import OptionError
from pipeline.methods.base import Clean, Term
from pipeline.methods.deep_defense import DeepDefense
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS
from pipeline.regularizer.loss_gradient import cross_entropy_pass, loss_gradient
from pipeline.regularizer.one_step import one_step
from pipeline.regularizer.penalty import robustness
from pipeline.training.memory_budget import PeakMemory
from pipeline.training.objective import Objective, make_objective
from tests.helpers.gradients import cosine, gradient, setting, with_attack

ONE_STEP = with_attack("one_step")
NETS = ["mlp", "lenet", "convnet", pytest.param("resnet18", marks=pytest.mark.slow)]
SMOOTH = "tests.helpers.nets:smooth"


def plain_loss(net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig) -> Tensor:
    """The objective as its definition says, image by image."""
    p = float(config.attack.norm)
    q = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1.0)
    total = torch.zeros((), dtype=images.dtype)
    for image, label in zip(images, labels, strict=True):
        x = image[None].clone().requires_grad_()
        logits = net(x)[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        (u,) = torch.autograd.grad(others.logsumexp(0) - logits[label], x)
        f, norm = (others.max() - logits[label]).detach(), u.flatten().norm(q)
        r = (u / norm).abs() ** (q - 1) * u.sign() * (-f / norm)
        logits = net(x + r)[0]
        masked = logits.detach().clone()
        masked[label] = -math.inf
        f_end = logits[masked.argmax()] - logits[label]
        (w,) = torch.autograd.grad(f_end, x, retain_graph=True)
        in_f = net(image[None]).argmax() != label
        sign = -1.0 if in_f else 1.0
        # d = (<w, r> - f) / ||w||, of which only f depends on the parameters.
        distance = sign * ((w * r).sum() - f_end) / w.flatten().norm(q)
        ratio = distance / image.flatten().norm(p)
        term = (config.d * ratio).exp() if in_f else (-config.c * ratio).exp()
        cross_entropy = F.cross_entropy(net(image[None]), label[None])
        total = total + cross_entropy + config.lam * term
    return total / len(images)


def gradient_of(objective: Objective, images: Tensor, labels: Tensor) -> Tensor:
    objective.net.eval().zero_grad()
    objective(images, labels, use_methods=True).loss.backward()
    return gradient(objective.net)


@pytest.mark.parametrize("name", [*NETS, SMOOTH])
@pytest.mark.parametrize("norm", [2.0, math.inf, 1.5])
def test_it_is_what_its_definition_says(name: str, norm: float) -> None:
    net, images, labels = setting(name)
    objective = make_objective(net, with_attack("one_step", norm=norm))
    actual = gradient_of(objective, images, labels)
    losses = objective(images, labels, use_methods=True)
    net.zero_grad()
    expected = plain_loss(net, images, labels, objective.methods[0].config.regularizer)
    expected.backward()
    assert (losses.ratio > 0).all()
    assert losses.flipped.all()
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(actual, gradient(net), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [2.0, math.inf, 3.0])
def test_with_two_classes_a_linear_net_has_the_exact_distance(norm: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    images, labels = torch.randn(10, 1, 3, 4, dtype=torch.float64), torch.arange(10) % 2
    config = with_attack("one_step", norm=norm)
    result = robustness(AttackView(net), images, labels, config)
    w = net[1].weight[1] - net[1].weight[0]
    q = 1.0 if math.isinf(norm) else norm / (norm - 1.0)
    exact = (net(images)[:, 1] - net(images)[:, 0]).abs() / w.norm(q)
    torch.testing.assert_close(result.ratio * images.flatten(1).norm(norm, dim=1), exact)
    assert 0 < result.correct.sum() < 10


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at_once", [None, 4])
def test_the_pass_gives_the_cross_entropys_gradient(name: str, at_once: int | None) -> None:
    net, images, labels = setting(name)
    view = AttackView(net)
    assert view.can_record_layers(images)
    done = cross_entropy_pass(view, images, labels, at_once)
    # Halved, as by gradient accumulation.
    gradients = torch.autograd.grad(done.mean / 2, view.parameters())
    expected = F.cross_entropy(net(images), labels, reduction="none")
    torch.testing.assert_close(done.cross_entropy, expected)
    by_autograd = torch.autograd.grad(expected.mean() / 2, view.parameters())
    for one, other in zip(gradients, by_autograd, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    start = loss_gradient(view, images, labels, at_once=2)
    torch.testing.assert_close(done.start.gradient, start.gradient)
    torch.testing.assert_close(done.start.logits, start.logits)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_constants_of_the_pass_change_no_bit(precision: str) -> None:
    """The last linearisation takes casts and batch norm's factors from the pass."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    net = nn.Sequential(*layers).eval()
    view = AttackView(net, precision=PRECISIONS[precision])
    images, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % 4
    start = cross_entropy_pass(view, images, labels).start
    assert start.constants is not None
    assert len(start.constants) > 0
    with_constants, without = (
        torch.autograd.grad(
            one_step(view, images, labels, 2.0, s).distance.sum(), view.parameters()
        )
        for s in (start, start._replace(constants=None))
    )
    for one, other in zip(with_constants, without, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_pass_in_reduced_precision(precision: str) -> None:
    net, images, labels = setting("lenet")
    net, images = net.float(), images.float()
    expected = gradient_of(make_objective(net, ONE_STEP), images, labels)
    objective = make_objective(net, ONE_STEP, runtime=RuntimeConfig(precision=precision))
    actual = gradient_of(objective, images, labels)
    assert objective.view.can_record_layers(images)
    assert cosine(actual, expected) > 0.99
    assert not torch.equal(actual, expected)


def test_the_direction_does_not_vanish_where_the_net_is_sure() -> None:
    net, images, labels = setting("mlp")
    net, images, labels = net.float(), images.float(), labels.clone()
    with torch.no_grad():
        [m for m in net.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(1e6)
        labels[:] = net(images).argmax(dim=1)  # of probability 1 in fp32
    x = images.clone().requires_grad_()
    (saturated,) = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)
    assert not saturated.any()
    result = robustness(AttackView(net), images, labels, ONE_STEP)
    assert result.flipped.all()
    assert (result.ratio > 0).all()


def test_forward_passes_of_a_step() -> None:
    net, images, labels = setting("lenet")
    # Parameters of layer norm are not recorded: the gradient by the parameters takes one pass more.
    other = nn.Sequential(nn.Flatten(), nn.LayerNorm(784), nn.Linear(784, 10)).double()
    for module, expected in ((net, 2), (other, 3)):
        objective = make_objective(module, ONE_STEP)
        gradient_of(objective, images, labels)  # with the checks of the net
        numbers = []
        module.register_forward_hook(lambda *_, numbers=numbers: numbers.append(1))
        gradient_of(objective, images, labels)
        assert len(numbers) == expected


def test_the_shared_pass_changes_nothing() -> None:
    net, images, labels = setting("convnet")
    results = []
    for shares in (True, False):
        for max_images in (None, 4):
            objective = make_objective(net, replace(ONE_STEP, max_images=max_images))
            objective.methods[0].takes_loss_gradient &= shares
            results.append(gradient_of(objective, images, labels))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_cross_entropys_gradient_in_reduced_precision(precision: str) -> None:
    net, images, labels = setting("lenet")
    net, images = net.float(), images.float()
    view = AttackView(net, PRECISIONS[precision])
    done = cross_entropy_pass(view, images, labels)
    scale = 1024.0  # of a loss scaler
    gradients = torch.autograd.grad(scale * done.mean, view.parameters())
    loss = scale * F.cross_entropy(view(images), labels)
    by_autograd = torch.autograd.grad(loss, view.parameters())
    exact = torch.autograd.grad(F.cross_entropy(net(images), labels), view.parameters())
    for one, other, expected in zip(gradients, by_autograd, exact, strict=True):
        error, usual = (one / scale - expected).norm(), (other / scale - expected).norm()
        assert error < 1.2 * usual + 1e-3 * expected.norm()
        assert error < 0.2 * expected.norm()


class Awkward(nn.Module):
    """A layer used twice, a frozen bias, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.dropout, self.last = nn.Dropout(), nn.Linear(4 * 12, 3)
        self.first.bias.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.twice(F.relu(self.first(x))))))
        return self.last(self.dropout(x.flatten(1)))


@pytest.mark.parametrize("max_images", [None, 3])
@pytest.mark.parametrize("sampled", [False, True])
def test_the_shared_pass_of_an_awkward_net(max_images: int | None, sampled: bool) -> None:
    torch.manual_seed(0)
    net = Awkward().double()
    images, labels = torch.randn(8, 1, 3, 4, dtype=torch.float64), torch.arange(8) % 3
    config = RegularizerConfig(lam=5, c=500, d=5, gradient="one_step", max_images=max_images)
    gradients, weights = [], []
    for shares in (True, False):
        objective = make_objective(net, config, ModelConfig(attack_dropout=True))
        objective.methods[0].takes_loss_gradient &= shares
        if sampled:
            objective.typical_ratio = 1e-3
            objective.uniform = torch.linspace(0.0, 0.9, 8, dtype=torch.float64)
        objective.view.seed_dropout(3)
        net.zero_grad()
        losses = objective(images, labels, use_methods=True)
        losses.loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.view.parameters()]))
        weights.append(losses.weight)
    assert sampled == bool((weights[0] == 0).any())
    assert torch.equal(*weights)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


class WithLogits(DeepDefense):
    """A user's method that needs the graph of the logits."""

    def term(self, clean: Clean) -> Term:
        term = super().term(clean)
        return replace(term, value=term.value + clean.logits.square().mean())


def test_a_subclass_keeps_the_graph_of_the_logits() -> None:
    net, images, labels = setting("lenet")
    with_term = make_objective(net, ONE_STEP)
    with_term.methods = [WithLogits(with_term.methods[0].config, with_term.view)]
    own = gradient_of(with_term, images, labels)
    without = gradient_of(make_objective(net, ONE_STEP), images, labels)
    net.zero_grad()
    net(images).square().mean().backward()
    torch.testing.assert_close(own - without, gradient(net), rtol=1e-6, atol=1e-9)


def test_a_second_backward_pass_is_refused() -> None:
    net, images, labels = setting("lenet")
    mean = cross_entropy_pass(AttackView(net), images, labels).mean
    mean.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        mean.backward()


@pytest.mark.parametrize("attack_dropout", [False, True])
def test_dropout(attack_dropout: bool) -> None:
    """Without attack_dropout the passes differ: the cross-entropy's has dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    images, labels = torch.randn(6, 1, 3, 4), torch.arange(6) % 3
    model = ModelConfig(attack_dropout=attack_dropout)
    objective = make_objective(net, ONE_STEP, model)
    gradients, ratios, cross_entropies = [], [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        objective.view.seed_dropout(seed)
        net.train().zero_grad()
        losses = objective(images, labels, use_methods=True)
        losses.loss.backward()
        gradients.append(gradient(net))
        ratios.append(losses.ratio)
        cross_entropies.append(losses.cross_entropy)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(cross_entropies[0], cross_entropies[2])
    assert torch.equal(ratios[0], ratios[2]) != attack_dropout


def test_memory_of_the_shared_pass() -> None:
    net, images, labels = setting("convnet", count=64)
    net, images = net.float(), images.float()
    peaks = []
    for config in (ONE_STEP, replace(ONE_STEP, lam=0), with_attack("boundary")):
        objective = make_objective(net, config)
        gradient_of(objective, images, labels)
        with PeakMemory() as peak:
            gradient_of(objective, images, labels)
        peaks.append(peak.peak)
    assert peaks[0] < 2 * peaks[1]
    assert peaks[0] < peaks[2]


def test_an_image_without_a_gradient_has_none_in_the_penalty() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    torch.nn.init.zeros_(net[1].weight)
    images, labels = torch.randn(4, 1, 3, 4), torch.tensor([0, 1, 2, 0])
    result = robustness(AttackView(net), images, labels, ONE_STEP)
    result.ratio.sum().backward()
    assert torch.equal(result.ratio, torch.zeros(4))
    assert not result.flipped.any()
    assert all(not p.grad.any() for p in net.parameters())


def test_attacks_that_do_not_fit_are_refused() -> None:
    assert with_attack("one_step", method="ddn").attack.method == "ddn"  # unused, with a warning
    with pytest.raises(OptionError, match="method"):
        with_attack("boundary", method="ddn")


@pytest.mark.parametrize(
    ("make", "method", "reason"),
    [
        (nn.Identity, "deep_defense", None),
        (nn.Identity, "clean", None),
        (nn.Dropout, "deep_defense", "dropout"),
        (lambda: nn.LayerNorm(12), "deep_defense", "layers"),
        (nn.Identity, "deep_defense+adversarial_2", "several"),
    ],
)
def test_why_passes_are_separate(
    make: Callable[[], nn.Module], method: str, reason: str | None
) -> None:
    adversarial = AdversarialConfig(eps=0.1)
    options = ObjectiveConfig(method=method, adversarial=adversarial)
    config = FinetuneConfig(regularizer=ONE_STEP, objective=options)
    net = nn.Sequential(nn.Flatten(), make(), nn.Linear(12, 3))
    objective = Objective(net, config)
    said = objective.why_passes_are_separate(torch.randn(2, 1, 3, 4))
    assert (said is None) if reason is None else (said is not None and reason in said)
