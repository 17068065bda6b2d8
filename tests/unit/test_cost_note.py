"""What is said when a run begins about its cost."""

import pytest
import torch
from torch import nn

from pipeline.config import AttackConfig, DataConfig, FinetuneConfig, ObjectiveConfig
from pipeline.config import RegularizerConfig as Options
from pipeline.models.trial import trial_images
from pipeline.training.cost_note import cost_note
from pipeline.training.objective import Objective


def note(activation: nn.Module, groups: int, options: Options, method: str) -> str:
    layers = nn.Conv2d(2, 4, 3, groups=groups), activation, nn.Flatten(), nn.Linear(16, 3)
    config = FinetuneConfig(regularizer=options, objective=ObjectiveConfig(method=method))
    return cost_note(Objective(nn.Sequential(*layers), config), torch.randn(2, 2, 4, 4))


@pytest.mark.parametrize(
    ("activation", "groups", "options", "method", "expected"),
    [
        (nn.SiLU(), 2, Options(), "deep_defense", "its 1 grouped convolutions"),
        (nn.SiLU(), 1, Options(), "deep_defense", ""),
        (nn.ReLU(), 2, Options(), "deep_defense", ""),  # no second derivatives
        (nn.ReLU(), 2, Options(attack=AttackConfig(norm="inf")), "deep_defense", "its 1 grouped"),
        (nn.SiLU(), 2, Options(gradient="boundary"), "deep_defense", ""),
        (nn.SiLU(), 2, Options(lam=0.0), "deep_defense", ""),
        (nn.SiLU(), 2, Options(), "clean", ""),
        (nn.Dropout(), 1, Options(gradient="one_step"), "deep_defense", "passes of its own"),
    ],
)
def test_costly_runs_are_announced(
    activation: nn.Module, groups: int, options: Options, method: str, expected: str
) -> None:
    said = note(activation, groups, options, method)
    assert (said == "") if expected == "" else (expected in said)


def test_trial_images_leave_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert trial_images(DataConfig(crop_size=8, resize_size=8), 2).shape == (2, 3, 8, 8)
    assert torch.equal(torch.rand(3), expected)
