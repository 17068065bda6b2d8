"""The Deep Defense regulariser.

In: a net, images and labels. Out: ||dx|| / ||x|| of every sample, as a
differentiable function of the net's parameters, and what the attack observed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attacks.deepfool import AttackOptions, deepfool
from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import RegularizerConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import upcast
from pipeline.regularizer.boundary import boundary
from pipeline.regularizer.linearized_distance import MeasuredDistance
from pipeline.regularizer.loss_gradient import LossGradient, loss_gradient
from pipeline.regularizer.one_step import one_step
from pipeline.regularizer.trace import AttackTrace
from pipeline.regularizer.true_distance import true_distance
from pipeline.regularizer.unrolled import unrolled

_MAX_INVERSE_PENALTY = 50.0  # largest R of a misclassified sample, form inverse


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
    start: PointsToLinearize | LossGradient | None = None,
    at_once: int | None = None,
) -> Robustness:
    """Attack each image and measure the perturbation.

    Samples classified correctly (T) move away from their label, the others (F) toward it.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W), in the network's input space.
        labels: (N,).
        config: the options of the regulariser.
        start: the images in a forward pass, if there is one, which is released early; with
            ``gradient`` one_step also the gradient of the margin loss.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    p = float(config.attack.norm)
    if config.gradient == "one_step":
        view = view.with_fused_attention()
        if not isinstance(start, LossGradient):
            start = loss_gradient(view, images, labels, start, at_once)
        measured = one_step(view, images, labels, p, start, at_once)
    else:
        points = None if isinstance(start, LossGradient) else start
        measured = _after_attack(view, images, labels, config, points, at_once)
    norm = per_sample_norm(images, p)
    return Robustness(
        # Of an image of zeros the ratio is infinite, and its gradient not a number; it counts as 0.
        ratio=measured.distance / norm.where(norm > 0, torch.inf),
        correct=measured.clean == labels,
        flipped=measured.flipped,
        iterations=measured.iterations,
    )


def _after_attack(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: RegularizerConfig,
    points: PointsToLinearize | None,
    at_once: int | None,
) -> MeasuredDistance:
    """The distance that an attack finds."""
    # Only the unrolled gradient takes second derivatives, in passes of its own.
    attack, first_order = config.attack, view.with_fused_attention()
    if attack.method == "superdeepfool":
        return true_distance(first_order, images, labels, attack, points=points, at_once=at_once)
    options = AttackOptions(record=True, keep_graph=config.gradient == "boundary", at_once=at_once)
    perturbation = deepfool(first_order, images, attack, labels, points=points, options=options)
    unrolls = config.gradient == "unrolled"
    trace = AttackTrace(
        (view if unrolls else first_order).with_current_masks(),
        images,
        perturbation,
        attack,
        len(images) if at_once is None else at_once,
        config.through_earlier_steps,
    )
    norm = per_sample_norm(unrolled(trace), float(attack.norm)) if unrolls else boundary(trace)
    return MeasuredDistance(norm, perturbation.clean, perturbation.flipped, perturbation.iterations)


def penalty(robustness: Robustness, config: RegularizerConfig) -> Tensor:
    """R of each sample (N,), of the form ``config.form``; exp is equation (5)."""
    ratio, correct, c, d = robustness.ratio, robustness.correct, config.c, config.d
    if config.form == "hinge":
        return torch.where(correct, (c - ratio).clamp_min(0.0), c + ratio)
    signed = torch.where(correct, -c * ratio, d * ratio)
    if config.form == "exp":
        return signed.exp()
    if config.form == "linear":
        return signed
    return 1.0 / (1.0 - signed).clamp_min(1.0 / _MAX_INVERSE_PENALTY)


def slopes(config: RegularizerConfig, ratio: float) -> tuple[float, float]:
    """|dR / dratio| of a sample in T and of one in F, at a ratio."""
    c, d = config.c, config.d
    if config.form == "exp":
        return c * math.exp(-c * ratio), d * math.exp(min(d * ratio, 100.0))
    if config.form == "linear":
        return c, d
    if config.form == "hinge":
        return float(ratio < c), 1.0
    return c / (1.0 + c * ratio) ** 2, d / max(1.0 - d * ratio, 1.0 / _MAX_INVERSE_PENALTY) ** 2


def worst_of_each_class(robustness: Robustness, labels: Tensor, number: int) -> Tensor:
    """Which samples (N,) bool are the worst of their class and among the worst of all.

    In T that is the smallest ratio, in F the largest (aggregation "min" of Yan, Guo, Zhang,
    "Adversarial Margin Maximization Networks", TPAMI 2019). Of equal ones the first counts.

    Args:
        robustness: of the batch.
        labels: (N,).
        number: how many of T, and of F, count as the worst of all.
    """
    ratio = robustness.ratio.detach()
    chosen = torch.zeros_like(robustness.correct)
    for members, badness in ((robustness.correct, -ratio), (~robustness.correct, ratio)):
        rows = members.nonzero().squeeze(1)
        order = rows[badness[rows].argsort(descending=True, stable=True)][:number]
        same_class = labels[order][:, None] == labels[order]
        chosen[order] = ~same_class.tril(diagonal=-1).any(dim=1)
    return chosen
