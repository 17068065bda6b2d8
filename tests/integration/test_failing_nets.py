"""Nets on which DeepFool fails: it is warned of, and the other attacks measure the distance.

The judge is DDN with 1,000 steps. All nets see MNIST's digits in [0, 1].
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import AttackConfig, EvaluationConfig, RuntimeConfig
from pipeline.data.convert import read_idx
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.statistics import distance_warnings, summarize
from pipeline.models.attack_view import AttackView
from tests.helpers.attack_runs import measured

NUM_IMAGES = 60
JUDGE = AttackConfig(method="ddn", descent_steps=1000)
Digits = tuple[Tensor, Tensor]


def read_digits(folder: Path, part: str) -> Digits:
    """Images (N, 1, 28, 28) in [0, 1], and labels."""
    images, labels = (
        torch.from_numpy(read_idx(folder / f"{part}-{kind}-ubyte.gz").copy())
        for kind in ("images-idx3", "labels-idx1")
    )
    return images.float().div(255)[:, None], labels.long()


@pytest.fixture(scope="module")
def train(real_data: Path) -> Digits:
    return read_digits(real_data / "mnist", "train")


@pytest.fixture(scope="module")
def test(real_data: Path) -> Digits:
    return read_digits(real_data / "mnist", "t10k")


def small_lenet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def fit(digits: Digits, steps: int, examples: Callable[..., Tensor] | None = None) -> nn.Module:
    """A small LeNet after some steps of Adam, on ``examples(net, images, labels, progress)``."""
    torch.manual_seed(0)
    net = small_lenet()
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(steps):
        rows = torch.randint(len(digits[0]), (64,))
        images, labels = digits[0][rows], digits[1][rows]
        for group in optimizer.param_groups:
            group["lr"] = 0.003 if step < 0.8 * steps else 0.0003
        if examples is not None:
            images = examples(net, images, labels, step / steps)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def pgd(net: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Examples of projected gradient descent, L-infinity; eps reaches 0.3 after half of the
    training."""
    eps, num_steps = 0.3 * min(1.0, 2 * progress), 5
    examples = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(num_steps):
        examples.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(examples), labels), examples)
        examples = examples.detach() + 2.5 * eps / num_steps * gradient.sign()
        examples = (images + (examples - images).clamp(-eps, eps)).clamp(0, 1)
    return examples


@pytest.fixture(scope="module")
def clean_net(train: Digits) -> nn.Module:
    return fit(train, 600)


class Probabilities(nn.Module):
    """Softmax in the net: where it is sure, its gradients almost vanish."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)


class StraightThrough(torch.autograd.Function):
    """Rounds to black or white; the gradient is that of the identity."""

    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.clamp(0, 1).round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Quantised(Probabilities):
    """Quantised input with a straight-through gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(StraightThrough.apply(images))


def warnings_of(samples: Samples, attack: AttackConfig) -> str:
    protocol = evaluation_protocol(EvaluationConfig(attack=attack), RuntimeConfig(), 10)
    return "\n".join(filter(None, distance_warnings(summarize(samples, protocol))))


def check(net: nn.Module, images: Tensor, references: Tensor, at_least: float) -> str:
    """Compare all attacks with the judge; returns the warnings about DeepFool.

    Args:
        net: from pixels to logits.
        images: (N, 1, 28, 28) that are attacked.
        references: (R, 1, 28, 28) for the upper bound.
        at_least: how much longer than the judge's DeepFool's distances are.
    """
    view = AttackView(net.requires_grad_(False), bounds=(0.0, 1.0), min_batch_size=16)

    def run(attack: AttackConfig) -> Samples:
        return measured(view, attack, images, 100, references)

    judge = run(JUDGE).perturbation_norm.mean()
    deepfool = AttackConfig(max_iterations=50)
    by_deepfool = run(deepfool)
    assert by_deepfool.perturbation_norm.mean() > at_least * judge
    for method in ("superdeepfool", "ddn", "best"):
        samples = run(AttackConfig(method=method, max_iterations=50))
        assert samples.flipped.all()
        assert samples.perturbation_norm.mean() <= 1.05 * judge, method
        # The stronger attacks never exceed the way to another image.
        assert not (samples.perturbation_norm > samples.upper_bound * (1 + 1e-6)).any()
        if method == "best":
            assert (samples.perturbation_norm[:, None] <= samples.distances * (1 + 1e-9)).all()
            return warnings_of(by_deepfool, deepfool) + warnings_of(
                samples, AttackConfig(method=method)
            )
    raise AssertionError


def attacked(test: Digits) -> tuple[Tensor, Tensor]:
    """The images that are attacked, and the references."""
    return test[0][:NUM_IMAGES], test[0][torch.arange(16) * 625]


@pytest.mark.slow
def test_a_clean_net_is_judged_by_the_same_rule(clean_net: nn.Module, test: Digits) -> None:
    warnings = check(clean_net, *attacked(test), at_least=1.1)
    assert "did not change" not in warnings
    assert "longer than the way" not in warnings


@pytest.mark.slow
def test_saturated_outputs(clean_net: nn.Module, test: Digits) -> None:
    warnings = check(Probabilities(clean_net), *attacked(test), at_least=3)
    assert "longer than the way to the boundary" in warnings
    assert "times the best known" in warnings


@pytest.mark.slow
def test_quantised_input_with_a_straight_through_gradient(
    clean_net: nn.Module, test: Digits
) -> None:
    warnings = check(Quantised(clean_net), *attacked(test), at_least=1.1)
    assert "did not change" in warnings
    assert "times the best known" in warnings


@pytest.mark.slow
def test_adversarial_training_in_another_norm(train: Digits, test: Digits) -> None:
    net = fit(train, 700, pgd)
    images, labels = test[0][:1000], test[1][:1000]
    with torch.no_grad():
        assert (net(images).argmax(dim=1) == labels).float().mean() > 0.9
    warnings = check(net, *attacked(test), at_least=1.4)
    assert "longer than the way to the boundary" in warnings
    assert "times the best known" in warnings


def test_deepfool_alone_is_warned_of_where_nothing_is_measured() -> None:
    """A net without a gradient, in memory."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.zero_()
    images = torch.rand(20, 1, 2, 2)
    attack = AttackConfig()
    samples = measured(AttackView(net, min_batch_size=16), attack, images, 20, images[:2])
    assert "20 of 20 images" in warnings_of(samples, attack)
    assert samples.stuck.all()
