"""The Deep Defense regulariser.

In: a net, images and labels. Out: ||dx|| / ||x|| of every sample, as a
differentiable function of the net's parameters, and what the attack saw on the way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import RegularizerConfig
from pipeline.models.attack_view import AttackView, ForwardPass, upcast
from pipeline.regularizer.boundary import boundary
from pipeline.regularizer.trace import AttackTrace
from pipeline.regularizer.unrolled import unrolled


@dataclass(frozen=True)
class Robustness:
    """What the regulariser knows of a batch of N images."""

    ratio: Tensor  # (N,) ||dx||_p / ||x||_p, differentiable
    correct: Tensor  # (N,) bool, in T (else in F)
    flipped: Tensor  # (N,) bool
    iterations: Tensor  # (N,) int64


def robustness(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: RegularizerConfig,
    graph: ForwardPass | None = None,
    at_once: int | None = None,
) -> Robustness:
    """Attack each image and measure the perturbation.

    Samples classified correctly (T) are moved away from their label, the others (F) towards it.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W), in the network's input space.
        labels: (N,).
        config: of the regulariser.
        graph: of the images, if the caller has it: saves a forward.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    perturbation = deepfool(
        view,
        images,
        config.attack,
        labels,
        graph=graph,
        record=True,
        keep_graph=config.gradient == "boundary",
        at_once=at_once,
    )
    replay = AttackTrace(
        view,
        images,
        perturbation,
        config.attack,
        len(images) if at_once is None else at_once,
        view.masks,
    )
    p = float(config.attack.norm)
    by_steps = config.gradient == "unrolled"
    norm = per_sample_norm(unrolled(replay), p) if by_steps else boundary(replay)
    ratio = norm / per_sample_norm(images, p)
    return Robustness(
        ratio,
        perturbation.clean == labels,
        perturbation.flipped,
        perturbation.iterations,
    )


def penalty(found: Robustness, config: RegularizerConfig) -> Tensor:
    """R of each sample, equation (5): exp(-c ratio) in T, exp(d ratio) in F; (N,)."""
    exponent = torch.where(found.correct, -config.c * found.ratio, config.d * found.ratio)
    return exponent.exp()
