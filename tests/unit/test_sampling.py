"""The regulariser on a random part of the misclassified samples."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig, RegularizerConfig, TrainConfig
from pipeline.data.batches import TrainingPlan
from pipeline.models.attack_view import AttackView
from pipeline.regularizer.sampling import probability_in_f, select, uniform_numbers
from pipeline.training.objective import Losses, Objective, make_objective

RATIO = 0.001  # mean ratio of the last evaluation, so that F's probability is 0.1


def setting(
    gradient: str = "unrolled", **options: object
) -> tuple[nn.Module, Objective, Tensor, Tensor]:
    """A small fp64 net, and a batch in which most images are misclassified."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    config = RegularizerConfig(lam=5, c=500, d=5, gradient=gradient, **options)
    images = 3 + torch.randn(10, 1, 3, 4, dtype=torch.float64)
    labels = torch.where(torch.arange(10) < 4, net(images).argmax(dim=1), torch.arange(10) % 4)
    return net, make_objective(net, config), images, labels


def gradient_of(net: nn.Module, losses: Losses) -> Tensor:
    parameters = list(net.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses.loss, parameters)])


def test_probabilities_follow_the_expected_gradients() -> None:
    imagenet = RegularizerConfig(c=500, d=5)
    assert probability_in_f(imagenet, 1.6e-3) == 0.1  # 2 * 5.04 / 224.7 is below the least
    nin = RegularizerConfig(c=70, d=5)
    in_t, in_f = 70 * math.exp(-70 * 0.0167), 5 * math.exp(5 * 0.0167)
    assert probability_in_f(nin, 0.0167) == pytest.approx(2 * in_f / in_t)
    assert probability_in_f(RegularizerConfig(c=25, d=5), 0.11) == 1.0  # MNIST
    assert probability_in_f(RegularizerConfig(c=25, d=5), 0.0224) == 1.0  # CIFAR-10: 0.78
    assert probability_in_f(RegularizerConfig(c=500, d=5, min_probability=0.6), 1e-3) == 1.0
    assert probability_in_f(RegularizerConfig(c=0, d=5), 0.01) == 1.0
    assert probability_in_f(RegularizerConfig(c=500, d=5, min_probability=1), 1e-3) == 1.0
    assert probability_in_f(imagenet, 50.0) == 1.0  # exp(-25000) is zero


def test_correct_samples_are_always_taken() -> None:
    correct = torch.tensor([True, False, False, True])
    uniform = torch.tensor([0.99, 0.05, 0.5, 0.0], dtype=torch.float64)
    rows, weight = select(correct, uniform, 0.1)
    assert rows.tolist() == [0, 1, 3]
    assert weight.tolist() == [1, 10, 0, 1]


@pytest.mark.parametrize("gradient", ["unrolled", "boundary", "one_step"])
def test_the_mean_over_draws_is_the_gradient_of_all_samples(gradient: str) -> None:
    net, objective, images, labels = setting(gradient)
    every = objective(images, labels, use_methods=True)
    correct = int(every.correct.sum())
    assert 3 <= correct <= 7
    expected = gradient_of(net, every)
    objective.typical_ratio = RATIO
    generator = np.random.default_rng(0)
    # Draws with the same samples have the same gradient, so each of these is computed once.
    computed: dict[tuple[bool, ...], Tensor] = {}
    gradients = []
    for _ in range(2000):
        objective.uniform = torch.from_numpy(generator.random(len(images)))
        taken = tuple((every.correct | (objective.uniform < 0.1)).tolist())
        if taken not in computed:
            losses = objective(images, labels, use_methods=True)
            assert losses.weight.gt(0).tolist() == list(taken)
            computed[taken] = gradient_of(net, losses)
        gradients.append(computed[taken])
    stacked = torch.stack(gradients)
    assert len(computed) > 10
    error = (stacked.mean(dim=0) - expected).abs()
    standard_error = stacked.std(dim=0) / math.sqrt(len(stacked))
    assert (error <= 4 * standard_error + 1e-12).all()
    assert (error <= standard_error + 1e-12).double().mean() > 0.5


@pytest.mark.parametrize("gradient", ["unrolled", "one_step"])
def test_values_of_a_sample_do_not_depend_on_the_others_that_are_measured(gradient: str) -> None:
    _, objective, images, labels = setting(gradient)
    every = objective(images, labels, use_methods=True)
    objective.typical_ratio = RATIO
    objective.uniform = torch.linspace(0.0, 0.9, len(images), dtype=torch.float64)
    some = objective(images, labels, use_methods=True)
    taken = some.weight > 0
    assert 0 < taken.sum() < len(images)
    for name in ("ratio", "penalty"):
        assert torch.allclose(getattr(some, name)[taken], getattr(every, name)[taken])
        assert not getattr(some, name)[~taken].any()
    torch.testing.assert_close(some.cross_entropy, every.cross_entropy)


@pytest.mark.parametrize("layers", [[], ["1.*"]])
def test_a_batch_of_which_nothing_is_measured(layers: list[str]) -> None:
    net, objective, images, _ = setting(layers=layers)
    labels = (net(images).argmax(dim=1) + 1) % 4
    objective.typical_ratio = RATIO
    objective.uniform = torch.full((len(images),), 0.99, dtype=torch.float64)
    losses = objective(images, labels, use_methods=True)
    assert not losses.weight.any()
    expected = gradient_of(net, objective(images, labels, use_methods=False))
    assert torch.equal(gradient_of(net, losses), expected)


@pytest.mark.parametrize("change", ["min_probability", "typical_ratio", "uniform"])
def test_without_one_of_its_inputs_all_samples_are_measured(change: str) -> None:
    options = {"min_probability": 1.0} if change == "min_probability" else {}
    _, objective, images, labels = setting(**options)
    objective.typical_ratio = None if change == "typical_ratio" else RATIO
    if change != "uniform":
        objective.uniform = torch.full((len(images),), 0.99, dtype=torch.float64)
    assert objective(images, labels, use_methods=True).weight.tolist() == [1] * len(images)


def test_random_numbers_do_not_depend_on_the_number_of_ranks() -> None:
    class Index:
        def __len__(self) -> int:
            return 1000

    def drawn(size: int, passes: int) -> list[float]:
        train = TrainConfig(batch_size=16, gradient_accumulation_steps=passes)
        config = FinetuneConfig(train=train)
        numbers = []
        for number in range(passes):
            for rank in range(size):
                plan = TrainingPlan(Index(), config.data, train, rank, size)
                numbers += uniform_numbers(3, 7, 16)[plan.part(number)].tolist()
        return numbers

    assert drawn(1, 1) == drawn(2, 1) == drawn(4, 1) == drawn(2, 4)
    assert uniform_numbers(3, 8, 16).tolist() != drawn(1, 1)
    assert uniform_numbers(4, 7, 16).tolist() != drawn(1, 1)


def test_each_image_keeps_its_dropout_masks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    view = AttackView(net, dropout=True)
    view.draw_dropout_masks(6)
    net.train()
    images = torch.randn(6, 1, 3, 4)
    rows = torch.tensor([1, 4, 5])
    assert torch.equal(view.of_rows(rows)(images[rows]), view(images)[rows])
    assert torch.equal(
        view.of_rows(rows)(images[rows[1:]], torch.tensor([1, 2])), view(images)[rows[1:]]
    )
