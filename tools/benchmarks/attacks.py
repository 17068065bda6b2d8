"""Attacks for the smallest perturbation: this project's beside foolbox's and adversarial-library's.

Images are attacked in the network's input space, away from the class that the net predicts. The
attacks of other libraries run through `pipeline.attacks.external`, which counts their queries.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.common import (
    EVALUATION_ITERATIONS,
    OVERSHOOT,
    Row,
    device_of,
    in_turn,
    load_attack,
    rates,
)
from pipeline.config import AttackConfig, EvaluationConfig
from pipeline.data.loader import Batch
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.samples import Samples
from pipeline.models.attack_view import AttackView


def variants(steps: int) -> dict[str, AttackConfig]:
    """The attacks by name; those of libraries only if they are installed.

    Args:
        steps: of DDN and FMN.
    """
    cheap = {"candidate_search": "pruned", "linearize_at": "overshot"}
    ours = {
        "deepfool": {},
        "superdeepfool": {},
        f"ddn, {steps} steps": {"method": "ddn"},
        f"fmn, {steps} steps": {"method": "fmn"},
    }
    libraries: dict[str, tuple[str, dict[str, Any]]] = {
        "foolbox DeepFool": ("foolbox.attacks:L2DeepFoolAttack", {"overshoot": OVERSHOOT}),
        f"foolbox DDN, {steps} steps": ("foolbox.attacks:DDNAttack", {"steps": steps}),
        "adv-lib df": ("adv_lib.attacks:df", {"overshoot": OVERSHOOT}),
        "adv-lib sdf": ("adv_lib.attacks:sdf", {}),
        f"adv-lib DDN, {steps} steps": ("adv_lib.attacks:ddn", {"steps": steps}),
        f"adv-lib FMN, {steps} steps": ("adv_lib.attacks:fmn", {"norm": 2, "steps": steps}),
    }
    configs = {
        name: _config(**{"method": name, "descent_steps": steps, **cheap, **options})
        for name, options in ours.items()
    }
    for name, (path, options) in libraries.items():
        if importlib.util.find_spec(path.partition(".")[0]) is not None:
            configs[name] = _config(method=path, options=options)
    return configs


def _config(**options: Any) -> AttackConfig:
    return AttackConfig(max_iterations=EVALUATION_ITERATIONS, overshoot=OVERSHOOT, **options)


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each attack: images/s, queries, rho2, share flipped, optimality."""
    device = device_of(options)
    view, images, labels = load_attack(options, default=32)
    results: dict[str, Samples] = {}

    def run_of(name: str, config: AttackConfig) -> Callable[[], None]:
        def run() -> None:
            results[name] = measure(view, config, images, labels)

        return run

    runs = {name: run_of(name, config) for name, config in variants(options.steps).items()}
    seconds = in_turn(runs, options.repeats, device)
    return rates(seconds, len(images), quality(results))


def measure(view: AttackView, config: AttackConfig, images: Tensor, labels: Tensor) -> Samples:
    """Samples of an attack on all images at once."""
    evaluator = Evaluator(view, EvaluationConfig(attack=config), len(images))
    batch = Batch(images, labels, np.arange(len(images)))
    parts = [*evaluator.add_batch(batch), *evaluator.drain()]
    return Samples.concatenate(part.samples for part in parts)


def quality(results: dict[str, Samples]) -> dict[str, dict[str, float]]:
    """Numbers of each attack; the best distances are those of all attacks together."""
    distances = {
        name: np.where(samples.flipped, samples.perturbation_norm, np.inf)
        for name, samples in results.items()
    }
    best = np.min([*distances.values()], axis=0)
    return {
        name: {
            "queries": float(np.mean(samples.queries)),
            "rho2": float(np.mean(samples.perturbation_norm / samples.image_norm)),
            "flipped": float(np.mean(samples.flipped)),
            "optimality": optimality(distances[name], best),
        }
        for name, samples in results.items()
    }


def optimality(distance: np.ndarray, best: np.ndarray) -> float:
    """1 for the best attack, 0 for one that changes no class (Cina et al., AttackBench, AAAI 2025).

    The area above the curve of the accuracy by budget, over that of the best attack, for budgets up
    to the largest of the best distances.

    Args:
        distance: (N,) by the attack, infinite where it changes no class.
        best: (N,) the smallest by any attack, infinite where none changes the class.
    """
    known = np.isfinite(best)
    largest = np.max(best[known], initial=0.0)
    area = np.sum(largest - best[known])
    if area == 0:
        return float(np.all(distance[known] <= best[known]))
    return float(np.sum(np.clip(largest - distance[known], 0, None)) / area)
