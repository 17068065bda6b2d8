"""Nets and methods of the user's own: where they are found, and what is refused of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import EvaluateConfig, FinetuneConfig, ModelConfig
from pipeline.errors import UserError
from pipeline.models.build import build
from pipeline.models.trial import check_net
from pipeline.runtime.importing import import_callable
from pipeline.training.targets import ReferenceTargets
from tests.helpers import nets
from tests.helpers.in_process import FINETUNE, call
from tests.helpers.runs import ROOT

UNUSED = """
import torch
from torch import nn
import data

def net(**kwargs):
    base = data.layers(**kwargs)
    base.register_parameter("spare", nn.Parameter(torch.arange(3.0)))
    return base
"""
LAYERS = """
from torch import nn

def layers(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
"""
METHOD = """
from pipeline.methods import Method

class Nothing(Method):
    pass
"""


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with modules that have names of the package's own."""
    names = ("models", "data", "config")
    for name, code in zip(names, (UNUSED, LAYERS, METHOD), strict=True):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def test_the_working_folder_comes_before_a_scripts_folder(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Python does for a script.
    monkeypatch.syspath_prepend(ROOT / "pipeline")
    options = ("--model.name", "models:net", "--objective.method", "config:Nothing")
    ended = call(FINETUNE, *options, "--dry_run", "true")
    assert ended.code == 0, ended.stderr
    assert "models:net, 7,850 trained parameters" in ended.stdout


def test_a_scripts_own_modules_are_still_found(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import_callable("models:net", "model.name")
    assert sys.path[0] == str(users_folder)
    assert sys.path[-1] == str(ROOT / "tools")
    assert import_callable("benchmarks.common:medians", "model.name")


def test_the_trial_of_a_net_leaves_the_runs_numbers_alone() -> None:
    config = FinetuneConfig(model=ModelConfig(name="resnet18", freeze_batch_norm=False))
    config.data.crop_size = 40
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4800, 10))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check_net(net, config, 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(module.training for module in net.modules())


def test_unused_parameters_are_frozen_for_training_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    net.register_parameter("spare", nn.Parameter(torch.ones(3)))
    for cls, trains in ((EvaluateConfig, True), (FinetuneConfig, False)):
        config = cls()
        config.data.channels, config.data.crop_size = 1, 28
        check_net(net, config, 10)
        assert net.spare.requires_grad is trains
    assert net[1].weight.requires_grad


def test_a_net_without_parameters_that_train_is_refused() -> None:
    config = FinetuneConfig()
    config.data.channels, config.data.crop_size = 1, 28
    net = nets.dropout_mlp().requires_grad_(False)
    with pytest.raises(UserError, match="has no parameter to train"):
        check_net(net, config, 10)


def test_images_of_norm_zero_are_no_reason_to_refuse_a_net() -> None:
    class Normalised(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images / images.flatten(1).norm(dim=1)[:, None, None, None])

    config = EvaluateConfig()
    config.data.channels, config.data.crop_size = 1, 28
    net = Normalised(nn.Flatten(), nn.Linear(784, 10))
    check_net(net, config, 10)
    assert net(torch.zeros(1, 1, 28, 28)).isnan().all()


class WithState(nn.Sequential):
    """A linear net with an entry in its state that is no weight."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 10))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_a_state_that_weights_files_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"no tensors, .* cannot hold: _extra_state; let"):
        build(ModelConfig(name=f"{__name__}:WithState"), 10)


class NotCopied(nn.Module):
    """A net that cannot be copied."""

    def __deepcopy__(self, memo: object) -> "NotCopied":
        raise TypeError("cannot pickle a generator")


def test_targets_of_a_net_that_cannot_be_copied() -> None:
    with pytest.raises(UserError, match=r"targets reference: the net cannot be copied .*generator"):
        ReferenceTargets(NotCopied(), torch.float32)
