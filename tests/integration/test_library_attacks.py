"""Attacks by import path: functions of users, and mistakes in the path and the options."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.attacks.external import ExternalAttack
from pipeline.errors import UserError
from tests.helpers.attack_runs import linear

OWN = """
import torch

def halfway(model, inputs, labels, *, μ_first=0.5, size: float = 0.0):
    return inputs + μ_first * size

def needs_eps(model, inputs, labels, eps):
    return inputs

def needs_size(model, inputs, labels, size, **others):
    return inputs

def fails(model, inputs, labels):
    raise ValueError("no such thing")

def of_another_shape(model, inputs, labels):
    return inputs.flatten(1)

def out_of_memory(model, inputs, labels):
    raise torch.OutOfMemoryError("out of memory")

def two(model, inputs):
    return inputs

class Attack:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_attacks.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", ["mu_first", "μ_first"])
def test_a_function_of_the_user(name: str) -> None:
    """It gets one image at a time; Greek letters may be spelled out."""
    view, images, labels, _ = linear("bounded")
    attack = ExternalAttack("own_attacks:halfway", {name: 0.25, "size": 0.5})
    result = attack.perturb(view, images, labels)
    assert torch.allclose(result.delta, torch.tensor(0.125))
    assert torch.equal(result.flipped, view(images + 0.125).argmax(dim=1) != labels)
    assert (result.num_forwards == 0).all()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("own_attacks", {}, "attack.method must be package.module:name"),
        ("foolbox.attacks:L2DeepFol", {}, "has no L2DeepFol"),
        ("foolbox.attack:DDNAttack", {}, "attack.method: foolbox.attack:DDNAttack cannot be"),
        (
            "foolbox.attacks:L2DeepFoolAttack",
            {"step": 3},
            "takes no option 'step' here; its options: steps, candidates, overshoot, loss; did "
            "you mean steps?",
        ),
        ("foolbox.attacks:L2PGD", {}, "searches no smallest perturbation; use"),
        ("foolbox.attacks:L2PGD", {"epsilon": 1.0}, "searches no smallest perturbation; use"),
        ("foolbox.attacks:SpatialAttack", {}, "nor a subclass of foolbox's MinimizationAttack"),
        ("own_attacks:needs_eps", {"eps": 1.0}, "searches no smallest perturbation; use"),
        ("own_attacks:needs_size", {}, "own_attacks:needs_size needs size; set it in attack.op"),
        ("own_attacks:halfway", {"targeted": True}, "takes no option 'targeted' here"),
        ("own_attacks:two", {}, "neither a function (model, inputs, labels, **options) nor"),
        ("own_attacks:Attack", {}, "neither a function (model, inputs, labels, **options) nor"),
    ],
)
def test_mistakes(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ExternalAttack(path, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "package"),
    [("adv_lib.attacks:ddn", "adv-lib"), ("foolbox.attacks:DDNAttack", "foolbox")],
)
def test_a_library_that_is_not_installed(
    path: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"is not installed; .*pip install {package}"):
        ExternalAttack(path, {})


@pytest.mark.usefixtures("own")
def test_an_exception_of_the_attack_is_one_line() -> None:
    view, images, labels, _ = linear("bounded")
    with pytest.raises(UserError, match="own_attacks:fails failed: ValueError: no such thing"):
        ExternalAttack("own_attacks:fails", {}).perturb(view, images, labels)
    with pytest.raises(UserError, match=r"of the shape \(1, 1, 8, 8\), got \(1, 64\)"):
        ExternalAttack("own_attacks:of_another_shape", {}).perturb(view, images, labels)
    with pytest.raises(torch.OutOfMemoryError):
        ExternalAttack("own_attacks:out_of_memory", {}).perturb(view, images, labels)
    assert view.net[1].weight.requires_grad
