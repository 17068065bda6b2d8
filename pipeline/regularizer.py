"""The Deep Defense regulariser.

In: a net, images, labels and the clean logits. Out: ||dx|| / ||x|| of every sample, as a
differentiable function of the net's parameters, and what the attack saw on the way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import RegularizerConfig
from pipeline.deepfool import deepfool
from pipeline.gradients import boundary, unrolled
from pipeline.view import AttackView, Graph, upcast


@dataclass(frozen=True)
class Robustness:
    """What the regulariser knows of a batch of N images."""

    ratio: Tensor  # (N,) ||dx||_2 / ||x||_2, differentiable
    correct: Tensor  # (N,) bool, in T (else in F)
    flipped: Tensor  # (N,) bool
    iterations: Tensor  # (N,) int64


def robustness(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    config: RegularizerConfig,
    graph: Graph | None = None,
) -> Robustness:
    """Attack each image and measure the perturbation.

    Samples classified correctly (T) are moved away from their label, the others (F) towards it.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W), in the network's input space.
        labels: (N,).
        logits: (N, K) of ``view`` at the images, without a graph.
        config: of the regulariser.
        graph: of the images, if the caller has it: saves a forward.
    """
    images = upcast(images.detach())
    correct = logits.argmax(dim=1) == labels
    found = deepfool(
        view,
        *(images, labels, logits, config.attack),
        towards=~correct,
        graph=graph,
        record=True,
    )
    factor = 1.0 + config.attack.overshoot
    if config.gradient == "boundary":
        norm = boundary(view, images, found, factor)
    else:
        norm = unrolled(view, images, found, factor).flatten(1).norm(dim=1)
    ratio = norm / images.flatten(1).norm(dim=1)
    return Robustness(ratio, correct, found.flipped, found.iterations)


def penalty(found: Robustness, config: RegularizerConfig) -> Tensor:
    """R of each sample, equation (5): exp(-c ratio) in T, exp(d ratio) in F; (N,)."""
    exponent = torch.where(found.correct, -config.c * found.ratio, config.d * found.ratio)
    return exponent.exp()
