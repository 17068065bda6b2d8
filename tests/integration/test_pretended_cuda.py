"""The code for GPUs, rehearsed on a pretended CUDA device: devices, launches, waits of the host.

Every operation is computed on the CPU (`tests.helpers.pretended_cuda`), so nothing here shows the
numbers, the memory or the speed of a GPU.
"""

from typing import NamedTuple

import pytest
import torch

from tests.helpers import pretended_shim
from tests.helpers.pretended_cases import (
    COUNTED_EVALUATIONS,
    COUNTED_STEPS,
    EVALUATIONS,
    QUICK_COUNTED_STEPS,
    QUICK_EVALUATIONS,
    QUICK_STEPS,
    STEPS,
    TRAININGS,
)
from tests.helpers.pretended_rehearsals import Outcome
from tests.helpers.pretended_rules import RULES, indices_on, values_on
from tests.helpers.pretended_runs import run_groups


class Bounds(NamedTuple):
    """The most launches and waits of the host in a step, or for each batch of an evaluation."""

    launches: int
    waits: int


# Of ResNet-18 with random weights: 32 images a step, 16 a batch of an evaluation.
BOUNDS = {
    "bf16 plain": Bounds(launches=260, waits=1),
    "bf16 unrolled": Bounds(launches=3050, waits=6),
    "bf16 unrolled, max_images 96": Bounds(launches=2050, waits=6),
    "bf16 boundary": Bounds(launches=1550, waits=6),
    "bf16 one_step": Bounds(launches=1060, waits=1),
    "exhaustive": Bounds(launches=1750, waits=12),
    "pruned": Bounds(launches=1600, waits=13),
    "fgs": Bounds(launches=2050, waits=14),
}
SLOW_STEPS = [name for name in STEPS if name not in QUICK_STEPS]
SLOW_EVALUATIONS = [name for name in EVALUATIONS if name not in QUICK_EVALUATIONS]
SLOW_COUNTED_STEPS = [name for name in COUNTED_STEPS if name not in QUICK_COUNTED_STEPS]

Outcomes = dict[str, dict[str, Outcome]]  # by group and case


@pytest.fixture(scope="module")
def quick() -> Outcomes:
    """The outcomes of the groups of the default tests, from one process."""
    return outcomes_of("rules", "faults", "quick steps", "quick evaluations", "quick counted steps")


@pytest.fixture(scope="module")
def slow() -> Outcomes:
    """The outcomes of all other groups, from one process."""
    names = ("other steps", "other evaluations", "trainings", "counted steps")
    return outcomes_of(*names, "counted evaluations")


def outcomes_of(*groups: str) -> Outcomes:
    reason = pretended_shim.why_not()
    if reason is not None:
        pytest.skip(reason)
    return run_groups(*groups)


def assert_good_step(outcome: Outcome) -> None:
    """No operation was refused, and the weights are as after the same steps on the CPU."""
    assert "error" not in outcome, outcome["error"]
    assert outcome["devices"] == ["cuda:0"]
    assert outcome["launches"] > 0
    assert 1e-6 < outcome["change"] < 1  # False for NaN
    assert outcome.get("difference", 0.0) < 0.01 * outcome["change"]


def assert_good_evaluation(outcome: Outcome) -> None:
    """No operation was refused, every row is there once, and the norms are those of the CPU."""
    assert "error" not in outcome, outcome["error"]
    assert outcome["rows"] == list(range(48))
    assert outcome["no_lower_bound"] == ""
    assert outcome["changed_class"] > 0.9
    assert outcome["difference"] < 1e-4


def excess(outcome: Outcome, bounds: Bounds) -> dict[str, float]:
    """What exceeds the bounds, for each batch of an evaluation."""
    values = {name: outcome[name] / outcome.get("num_batches", 1) for name in bounds._fields}
    return {name: value for name, value in values.items() if value > getattr(bounds, name)}


def assert_within_bounds(outcome: Outcome, bounds: Bounds) -> None:
    assert "error" not in outcome, outcome["error"]
    assert excess(outcome, bounds) == {}, outcome["wait_sites"]


@pytest.mark.parametrize("name", QUICK_STEPS)
def test_step(quick: Outcomes, name: str) -> None:
    assert_good_step(quick["quick steps"][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_STEPS)
def test_other_step(slow: Outcomes, name: str) -> None:
    outcome = slow["other steps"][name]
    assert_good_step(outcome)
    assert (outcome["measured"] < 8) == ("sampled" in name)


@pytest.mark.parametrize("name", QUICK_EVALUATIONS)
def test_evaluation(quick: Outcomes, name: str) -> None:
    assert_good_evaluation(quick["quick evaluations"][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_EVALUATIONS)
def test_other_evaluation(slow: Outcomes, name: str) -> None:
    assert_good_evaluation(slow["other evaluations"][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_run(slow: Outcomes, name: str) -> None:
    """A run resumed from its first checkpoint ends with the weights of the whole run; weights.pth
    is read by a machine without the device."""
    outcome = slow["trainings"][name]
    assert "error" not in outcome, outcome["error"]
    assert outcome["steps"] == [8, 8]
    assert outcome["checkpoint"] == "step-000000003.pt"
    assert outcome["same_weights"]
    assert outcome["devices"] == ["cpu"]
    assert outcome["panels"] == 2
    assert {"weights.pth", "reference.pth", "summary.json"} <= {*outcome["files"]}


@pytest.mark.parametrize("name", QUICK_COUNTED_STEPS)
def test_bounds(quick: Outcomes, name: str) -> None:
    assert_within_bounds(quick["quick counted steps"][name], BOUNDS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW_COUNTED_STEPS if name in BOUNDS])
def test_other_bounds(slow: Outcomes, name: str) -> None:
    assert_within_bounds(slow["counted steps"][name], BOUNDS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED_EVALUATIONS)
def test_bounds_of_evaluations(slow: Outcomes, name: str) -> None:
    assert_within_bounds(slow["counted evaluations"][name], BOUNDS[name])


def test_mixed_devices_are_found(quick: Outcomes) -> None:
    error = quick["faults"]["mixed devices"]["error"]
    assert "found at least two devices, cuda:0 and cpu!" in error
    assert "pipeline/attacks/deepfool.py" in error


@pytest.mark.parametrize(
    ("fault", "reason"), [("item", "item"), ("blocking copy", "blocking copy from the CPU")]
)
def test_waits_are_found(quick: Outcomes, fault: str, reason: str) -> None:
    """A wait in each iteration exceeds the bounds of the step without it, and its line is known."""
    faultless, faulty = quick["faults"]["none"], quick["faults"][fault]
    bounds = Bounds(launches=faulty["launches"], waits=faultless["waits"])
    assert excess(faultless, bounds) == {}
    assert excess(faulty, bounds) == {"waits": faulty["waits"]}
    new_sites = faulty["wait_sites"].keys() - faultless["wait_sites"].keys()
    assert new_sites
    for site in new_sites:
        assert site.startswith("pipeline/attacks/deepfool.py:")
        assert site.endswith(f" {reason}")


@pytest.mark.parametrize("name", RULES)
def test_rules(quick: Outcomes, name: str) -> None:
    outcome, rule = quick["rules"][name], RULES[name]
    if rule.refused:
        assert "found at least two devices" in outcome["refused"]
    else:
        assert outcome == {"refused": "", "waits": int(rule.waits)}


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_rules_on_a_gpu(name: str) -> None:
    """CUDA itself refuses the same expressions, and waits for the same."""
    device, rule = torch.device("cuda"), RULES[name]
    values, indices = values_on(device), indices_on(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rule.expression(values, indices)
        message = ""
    except RuntimeError as error:
        message = str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ("synchronizing CUDA operation" in message) == rule.waits
    assert (message != "") == (rule.waits or rule.refused)
