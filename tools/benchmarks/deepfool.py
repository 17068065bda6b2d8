"""DeepFool compared with foolbox's and adversarial-library's, if they are installed."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    EVALUATION_ITERATIONS,
    NUM_CANDIDATES,
    OVERSHOOT,
    Row,
    in_turn,
    load_attack,
    rates,
)
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView

RANGE = 8.0  # normalised pixels lie well within -RANGE..RANGE


def _ours(**options: Any) -> AttackConfig:
    return AttackConfig(max_iterations=EVALUATION_ITERATIONS, overshoot=OVERSHOOT, **options)


# The names state how the class is chosen, and whether the search is exhaustive, as it is in other
# libraries.
OURS = {
    "reselect": _ours(candidate_search="pruned"),
    "fixed": _ours(candidate_search="pruned", target_class="fixed"),
    "fixed, overshot": _ours(
        candidate_search="pruned", target_class="fixed", linearize_at="overshot"
    ),
    "reselect, exhaustive": _ours(),
    "fixed, exhaustive": _ours(target_class="fixed"),
}

Attack = Callable[[], Tensor]  # the perturbed images


def foolbox_attack(net: nn.Module, images: Tensor, labels: Tensor) -> Attack | None:
    """foolbox's L2DeepFoolAttack, in the network's input space."""
    try:
        from foolbox.attacks.deepfool import L2DeepFoolAttack
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        return None
    model = PyTorchModel(net, bounds=(-RANGE, RANGE), device=images.device)
    attack = L2DeepFoolAttack(
        steps=EVALUATION_ITERATIONS, candidates=NUM_CANDIDATES, overshoot=OVERSHOOT, loss="logits"
    )
    return lambda: attack.run(model, images, labels)


def adversarial_library_attack(net: nn.Module, images: Tensor, labels: Tensor) -> Attack | None:
    """adversarial-library's df, adapted to the same task.

    It considers every class and takes images in [0, 1], so the net is wrapped: images are scaled
    linearly, and only the logits of the q candidates are returned. Because df removes finished
    images from the batch, the number of each image is stored in an additional channel, from which
    the wrapper reads which candidates to return.
    """
    try:
        from adv_lib.attacks import df  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    attack: Callable[..., Tensor] = df  # its annotation asks for a module; a function will do
    with torch.no_grad():
        classes = net(images).topk(NUM_CANDIDATES, dim=1).indices
    numbers = torch.arange(len(images), device=images.device) / len(images)
    tags = expand_to_images(numbers).expand(-1, 1, *images.shape[2:])
    inputs = torch.cat([(images + RANGE) / (2 * RANGE), tags], dim=1)

    def candidate_logits(inputs: Tensor) -> Tensor:
        rows = (inputs[:, -1, 0, 0].detach() * len(images)).round().long()
        return net(inputs[:, :-1] * (2 * RANGE) - RANGE).gather(1, classes[rows])

    def run() -> Tensor:
        predicted = torch.zeros_like(labels)  # the first candidate is the predicted class
        perturbed = attack(
            candidate_logits,
            inputs,
            predicted,
            steps=EVALUATION_ITERATIONS,
            overshoot=OVERSHOOT,
            return_unsuccessful=True,
        )
        return perturbed[:, :-1] * (2 * RANGE) - RANGE

    return run


def our_attack(view: AttackView, images: Tensor, config: AttackConfig) -> Attack:
    """This project's DeepFool."""
    return lambda: images + deepfool(view, images, config).delta


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each variant: images/s, their ratio to foolbox's, rho2, share flipped."""
    view, images, labels = load_attack(options, default=64)
    other_libraries = {
        "foolbox": foolbox_attack(view.net, images, labels),
        "adversarial-library": adversarial_library_attack(view.net, images, labels),
    }
    attacks = {name: run for name, run in other_libraries.items() if run is not None}
    attacks |= {name: our_attack(view, images, config) for name, config in OURS.items()}
    return measure(attacks, view, images, labels, options.repeats)


def measure(
    attacks: dict[str, Callable[[], Tensor]],
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    repeats: int,
) -> list[Row]:
    """One row for each attack: images/s, rho2, and the share whose class has changed."""
    # This call is also a warm-up.
    results = {name: _quality(view, images, labels, run()) for name, run in attacks.items()}
    return rates(in_turn(attacks, repeats, images.device), len(images), results)


@torch.no_grad()
def _quality(
    view: AttackView, images: Tensor, labels: Tensor, perturbed: Tensor
) -> dict[str, float]:
    ratio = per_sample_norm((perturbed - images).double()) / per_sample_norm(images.double())
    flipped = view(perturbed).argmax(dim=1) != labels
    return {"rho2": ratio.mean().item(), "flipped": flipped.float().mean().item()}
