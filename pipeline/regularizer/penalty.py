"""The Deep Defense regulariser.

In: a net, images and labels. Out: ||dx|| / ||x|| of every sample, as a
differentiable function of the net's parameters, and what the attack observed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attacks.deepfool import AttackOptions, deepfool
from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import RegularizerConfig
from pipeline.models.attack_view import AttackView, upcast
from pipeline.regularizer.boundary import boundary
from pipeline.regularizer.trace import AttackTrace
from pipeline.regularizer.true_distance import true_distance
from pipeline.regularizer.unrolled import unrolled


@dataclass(frozen=True)
class Robustness:
    """The attack's results for a batch of N images."""

    ratio: Tensor  # (N,) ||dx||_p / ||x||_p, differentiable
    correct: Tensor  # (N,) bool, in T (else in F)
    flipped: Tensor  # (N,) bool
    iterations: Tensor  # (N,) int64


def robustness(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: RegularizerConfig,
    points: PointsToLinearize | None = None,
    at_once: int | None = None,
) -> Robustness:
    """Attack each image and measure the perturbation.

    Samples classified correctly (T) move away from their label, the others (F) toward it.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W), in the network's input space.
        labels: (N,).
        config: the options of the regulariser.
        points: the images in a forward pass, if there is one; released early.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    p = float(config.attack.norm)
    if config.attack.method == "superdeepfool":
        nearest = true_distance(view, images, labels, config.attack, points=points, at_once=at_once)
        norm = nearest.distance
        clean, flipped, iterations = nearest.clean, nearest.flipped, nearest.iterations
    else:
        trace = _attack(view, images, labels, config, points, at_once)
        unrolls = config.gradient == "unrolled"
        norm = per_sample_norm(unrolled(trace), p) if unrolls else boundary(trace)
        clean, flipped = trace.perturbation.clean, trace.perturbation.flipped
        iterations = trace.perturbation.iterations
    return Robustness(
        ratio=norm / per_sample_norm(images, p),
        correct=clean == labels,
        flipped=flipped,
        iterations=iterations,
    )


def _attack(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: RegularizerConfig,
    points: PointsToLinearize | None,
    at_once: int | None,
) -> AttackTrace:
    """DeepFool, recorded for its gradient."""
    options = AttackOptions(record=True, keep_graph=config.gradient == "boundary", at_once=at_once)
    perturbation = deepfool(view, images, config.attack, labels, points=points, options=options)
    size = len(images) if at_once is None else at_once
    return AttackTrace(view.with_current_masks(), images, perturbation, config.attack, size)


def penalty(robustness: Robustness, config: RegularizerConfig) -> Tensor:
    """R of each sample, equation (5): exp(-c ratio) in T, exp(d ratio) in F; (N,)."""
    ratio = robustness.ratio
    return torch.where(robustness.correct, -config.c * ratio, config.d * ratio).exp()
