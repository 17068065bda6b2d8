"""DeepFool's sweep beside foolbox's and adversarial-library's, where they are installed."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView

from .common import Row, device_of, in_turn, load_images, load_net, rates

Q, ITERATIONS, OVERSHOOT = 10, 50, 0.02
RANGE = 8.0  # normalised pixels lie well within -RANGE..RANGE


def _ours(**options: str) -> AttackConfig:
    return AttackConfig(max_iterations=ITERATIONS, overshoot=OVERSHOOT, **options)  # type: ignore[arg-type]


# By how the class is chosen. The search is pruned, or exhaustive, as that of the other libraries.
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
    attack = L2DeepFoolAttack(steps=ITERATIONS, candidates=Q, overshoot=OVERSHOOT, loss="logits")
    return lambda: attack.run(model, images, labels)


def adversarial_library_attack(net: nn.Module, images: Tensor, labels: Tensor) -> Attack | None:
    """adversarial-library's df. It takes every class and images in [0, 1]: it is shown the q
    classes alone, and a linear scale. As it drops finished images on its way, each image carries
    its number in a channel of its own, which the net does not see."""
    try:
        from adv_lib.attacks import df  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    with torch.no_grad():
        classes = net(images).topk(Q, dim=1).indices
    number = torch.arange(len(images), device=images.device) / len(images)
    tags = expand_to_images(number).expand(-1, 1, *images.shape[2:])
    inputs = torch.cat([(images + RANGE) / (2 * RANGE), tags], dim=1)

    def shown(inputs: Tensor) -> Tensor:
        rows = (inputs[:, -1, 0, 0].detach() * len(images)).round().long()
        return net(inputs[:, :-1] * (2 * RANGE) - RANGE).gather(1, classes[rows])

    def run() -> Tensor:
        best = torch.zeros_like(labels)  # the first of the q is the predicted class
        found = df(
            shown, inputs, best, steps=ITERATIONS, overshoot=OVERSHOOT, return_unsuccessful=True
        )
        return found[:, :-1] * (2 * RANGE) - RANGE

    return run


def our_attack(view: AttackView, images: Tensor, config: AttackConfig) -> Attack:
    """This project's sweep, from the images alone."""
    return lambda: images + deepfool(view, images, config).delta


def benchmark(options: argparse.Namespace) -> list[Row]:
    """A row a variant: images/s and their ratio to foolbox's, rho2, share flipped."""
    device = device_of(options)
    net, images = (
        load_net(options).requires_grad_(requires_grad=False),
        load_images(options, default=64),
    )
    view = AttackView(net)
    with torch.no_grad():
        labels = view(images).argmax(dim=1)
    peers = {
        "foolbox": foolbox_attack(net, images, labels),
        "adversarial-library": adversarial_library_attack(net, images, labels),
    }
    attacks = {name: run for name, run in peers.items() if run is not None}
    attacks |= {name: our_attack(view, images, config) for name, config in OURS.items()}
    # Also a warm-up.
    found = {name: _quality(view, images, labels, run()) for name, run in attacks.items()}
    return rates(in_turn(attacks, options.repeats, device), len(images), found)


@torch.no_grad()
def _quality(view: AttackView, images: Tensor, labels: Tensor, perturbed: Tensor) -> Row:
    ratio = per_sample_norm((perturbed - images).double()) / per_sample_norm(images.double())
    flipped = view(perturbed).argmax(dim=1) != labels
    return {"rho2": ratio.mean().item(), "flipped": flipped.float().mean().item()}
