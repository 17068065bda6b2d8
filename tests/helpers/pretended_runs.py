"""Runs the cases of `pretended_cases` on the pretended CUDA device.

    python -m tests.helpers.pretended_runs table

prints the launches and the waits of ResNet-18's steps and evaluations, from a process with the
device. In that process the arguments are names of `GROUPS`, and the outcomes are printed as JSON.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from pipeline.data.index import Index
from pipeline.models.attack_view import AttackView
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
from tests.helpers.pretended_cuda import CUDA, counts, pretend
from tests.helpers.pretended_rehearsals import (
    Outcome,
    evaluate,
    make_index,
    rehearse_evaluation,
    rehearse_steps,
    rehearse_training,
    run_steps,
    substituted,
)
from tests.helpers.pretended_rules import RULES, Rule, indices_on, values_on
from tests.helpers.pretended_table import table

# What is done to the points of each iteration of the attack.
FAULTS: dict[str, Callable[[Tensor], object]] = {
    "none": lambda points: points,
    "mixed devices": lambda points: points + torch.zeros(points.shape[1:]),
    "item": lambda points: points.sum().item(),
    "blocking copy": lambda points: torch.zeros(3).to(points.device),
}


def outcome_of(work: Callable[[], Outcome]) -> Outcome:
    """The outcome, or the error and its traceback."""
    try:
        return work()
    except Exception:
        return {"error": traceback.format_exc()}


def _steps(names: Iterable[str], pictures: Index) -> dict[str, Outcome]:
    return {name: outcome_of(lambda n=name: rehearse_steps(STEPS[n], pictures)) for name in names}


def _evaluations(names: Iterable[str], pictures: Index) -> dict[str, Outcome]:
    return {
        name: outcome_of(lambda n=name: rehearse_evaluation(EVALUATIONS[n], pictures))
        for name in names
    }


def _counted_steps(names: Iterable[str], pictures: Index) -> dict[str, Outcome]:
    return {
        name: outcome_of(lambda n=name: _without_weights(run_steps(COUNTED_STEPS[n], pictures)))
        for name in names
    }


def _counted_evaluations(pictures: Index) -> dict[str, Outcome]:
    return {
        name: outcome_of(lambda c=case: evaluate(c, pictures)[1])
        for name, case in COUNTED_EVALUATIONS.items()
    }


def _without_weights(outcome: Outcome) -> Outcome:
    """What can be written as JSON."""
    return {name: value for name, value in outcome.items() if name != "weights"}


def try_rule(rule: Rule) -> Outcome:
    """What the pretended device does with an expression."""
    values, indices = values_on(CUDA), indices_on(CUDA)
    counts.restart()
    try:
        rule.expression(values, indices)
    except RuntimeError as error:
        return {"refused": str(error)}
    return {"refused": "", "waits": counts.waits}


def _faults(pictures: Index) -> dict[str, Outcome]:
    """A step without a fault, and with each of `FAULTS` in every iteration of the attack."""
    case, clip = STEPS[QUICK_STEPS[0]], AttackView.clip_

    def faulty_step(fault: Callable[[Tensor], object]) -> Outcome:
        def clip_with_fault(view: AttackView, points: Tensor) -> Tensor:
            fault(points)
            return clip(view, points)

        with mock.patch.object(AttackView, "clip_", clip_with_fault):
            return _without_weights(run_steps(case, pictures))

    return {name: outcome_of(lambda f=fault: faulty_step(f)) for name, fault in FAULTS.items()}


# What a process runs, by the name of the group.
GROUPS: dict[str, Callable[[Index], dict[str, Outcome]]] = {
    "quick steps": lambda pictures: _steps(QUICK_STEPS, pictures),
    "other steps": lambda pictures: _steps(
        [name for name in STEPS if name not in QUICK_STEPS], pictures
    ),
    "quick evaluations": lambda pictures: _evaluations(QUICK_EVALUATIONS, pictures),
    "other evaluations": lambda pictures: _evaluations(
        [name for name in EVALUATIONS if name not in QUICK_EVALUATIONS], pictures
    ),
    "rules": lambda _: {name: try_rule(rule) for name, rule in RULES.items()},
    "faults": _faults,
    "trainings": lambda pictures: {
        name: outcome_of(lambda o=options: rehearse_training(o, pictures))
        for name, options in TRAININGS.items()
    },
    "quick counted steps": lambda pictures: _counted_steps(QUICK_COUNTED_STEPS, pictures),
    "counted steps": lambda pictures: _counted_steps(COUNTED_STEPS, pictures),
    "counted evaluations": _counted_evaluations,
}


def run_groups(*names: str) -> dict[str, dict[str, Outcome]]:
    """Run groups in a process with the pretended device: outcomes by group and case."""
    done = pretended_shim.run_module("tests.helpers.pretended_runs", *names)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the groups of the command line here, or start a process that does and print a table."""
    if sys.argv[1:] == ["table"]:
        print(table(run_groups("counted steps", "counted evaluations")))
        return
    with tempfile.TemporaryDirectory() as folder, pretend(), substituted():
        pictures = make_index(Path(folder))
        outcomes = {name: GROUPS[name](pictures) for name in sys.argv[1:]}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
