"""The forms of the regulariser, and which samples have a term."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig, RegularizerConfig
from pipeline.regularizer.penalty import Robustness, penalty, slopes, worst_of_each_class
from pipeline.training.objective import make_objective
from tests.helpers.gradients import CONFIG, gradient_by, plain_gradient, setting

FORMS = ("exp", "linear", "inverse", "hinge")


@pytest.mark.parametrize("name", ["lenet", "tests.helpers.nets:smooth"])
@pytest.mark.parametrize(
    "options",
    [
        *({"form": form} for form in FORMS[1:-1]),
        {"form": "hinge", "c": 1.0},
        {"form": "hinge", "c": 0.1},  # some are far enough
        {"include_misclassified": False},
        {"through_earlier_steps": False},
        {"form": "inverse", "through_earlier_steps": False, "include_misclassified": False},
    ],
    ids=str,
)
def test_gradients_are_those_of_a_plain_unrolling(name: str, options: dict[str, Any]) -> None:
    net, images, labels = setting(name)
    config = replace(CONFIG, d=0.5, **options)
    actual = gradient_by(net, images, labels, config)
    expected = plain_gradient(net, images, labels, config)
    assert (actual - expected).norm() < 1e-9 * expected.norm()
    default = gradient_by(net, images, labels, replace(CONFIG, d=0.5))
    assert (actual - default).norm() > 1e-6 * expected.norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 3.0])
def test_slopes(form: str, ratio: float) -> None:
    config = RegularizerConfig(c=0.5, d=2.0, form=form)
    ratios = torch.full((2,), ratio, dtype=torch.float64, requires_grad=True)
    robustness = Robustness(ratios, torch.tensor([True, False]), *(torch.zeros(2),) * 2)
    values = penalty(robustness, config)
    (derivative,) = torch.autograd.grad(values.sum(), ratios)
    if form == "inverse" and ratio == 3.0:
        assert values[1] == 50.0
        assert derivative[1] == 0.0
        derivative[1] = 2.0 * 50.0**2  # of the largest R that is not limited
    assert slopes(config, ratio) == pytest.approx((-derivative[0].item(), derivative[1].item()))


def test_the_worst_of_each_class_among_the_worst_of_all() -> None:
    ratio = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.5, 0.9, 0.8, 0.7])
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 0, 1])
    correct = torch.arange(8) < 5
    robustness = Robustness(ratio, correct, *(torch.zeros(8),) * 2)

    def chosen(number: int) -> list[int]:
        return worst_of_each_class(robustness, labels, number).nonzero().squeeze(1).tolist()

    assert chosen(8) == [1, 3, 4, 5, 7]
    assert chosen(4) == [1, 3, 5, 7]
    assert chosen(2) == [1, 3, 5]
    assert chosen(1) == [1, 5]


def test_only_the_worst_samples_have_a_term() -> None:
    net, images, labels = setting("lenet", 12)
    config = replace(CONFIG, smallest_share=0.25)
    losses = make_objective(net, config)(images, labels, use_methods=True)
    num_with_term = int((losses.penalty != 0).sum())
    assert 2 <= num_with_term <= 6
    every = make_objective(net, CONFIG)(images, labels, use_methods=True)
    has_term = losses.penalty != 0
    assert torch.equal(losses.penalty[has_term], every.penalty[has_term])
    expected = every.cross_entropy.mean() + 5 * losses.penalty.sum() / len(images)
    assert losses.loss.item() == pytest.approx(expected.item())


def test_only_correct_images_have_a_term_where_modes_see_other_classes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(16, 4),
    )
    config = RegularizerConfig(lam=5, c=3, d=5, include_misclassified=False)
    objective = make_objective(net, config, ModelConfig(freeze_batch_norm=False))
    objective.train()
    images, labels = torch.randn(64, 1, 3, 4), torch.arange(64) % 4
    with torch.no_grad():
        correct = objective.view(images).argmax(dim=1) == labels
    penalties = objective(images, labels, use_methods=True).penalty
    assert (penalties[~correct] == 0).all()
    assert (penalties[correct] > 0).any()
