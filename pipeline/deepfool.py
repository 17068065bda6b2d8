"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016), as Deep Defense uses it.

Finds perturbations without a graph. Only unfinished samples stay in the batch. The record of the
steps is what `pipeline.regularizer` differentiates; evaluation uses the perturbation alone.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.config import AttackConfig
from pipeline.models import AttackView, upcast


@dataclass(frozen=True)
class Step:
    """One iteration, for the A samples that were unfinished at its beginning."""

    samples: Tensor  # (A,) int64, positions in the batch
    start: Tensor  # (A, C, H, W), sum of the steps before this one
    source: Tensor  # (A,) int64, the class moved away from
    target: Tensor  # (A,) int64, the class moved towards
    draw: int  # of the dropout masks, where dropout is on


@dataclass(frozen=True)
class Perturbation:
    """What the attack found for a batch of N images."""

    delta: Tensor  # (N, C, H, W), with the overshoot
    iterations: Tensor  # (N,) int64, steps taken
    flipped: Tensor  # (N,) bool, whether the class at x + delta is the wanted one
    prediction: Tensor  # (N,) int64, class at x + delta
    steps: list[Step] = field(default_factory=list)


def candidates(logits: Tensor, labels: Tensor, number: int) -> Tensor:
    """The classes to move to: the ``number`` highest logits, in that order, without the label.

    Args:
        logits: (N, K) at the clean images; every label is the class of highest logit.
        labels: (N,) class of each image.
        number: q; cut to the number of classes.

    Returns:
        (N, min(q, K) - 1) classes.
    """
    top = logits.topk(min(number, logits.shape[1]), dim=1).indices
    # The label is in the top for every sample that is classified correctly; should a tie have
    # left it out, the last candidate goes instead, so that all rows have one length.
    is_label = top == labels[:, None]
    is_label[:, -1] |= ~is_label.any(dim=1)
    return top[~is_label].view(len(top), -1)


@torch.no_grad()
def deepfool(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    config: AttackConfig,
    *,
    towards: bool = False,
    record: bool = False,
) -> Perturbation:
    """Smallest perturbation, to first order, that changes the class of each image.

    Linearises at x plus the sum of the steps (without the overshoot, as the Deep Defense
    authors do), and stops for a sample once its class at x + (1 + overshoot) * sum is another
    one than ``labels`` (or, with ``towards``, is the label).

    Args:
        view: the net.
        images: (N, C, H, W), in the network's input space.
        labels: (N,) the class to leave, which each image must have now; with ``towards`` the
            class to reach, which no image may have now.
        logits: (N, K) at the clean images.
        config: candidates, iterations, overshoot.
        towards: move along w_label - w_current, the current class read anew in each iteration.
        record: keep the steps for the regulariser.
    """
    images = upcast(images.detach())
    total = torch.zeros_like(images)
    factor = 1.0 + config.overshoot
    iterations = torch.zeros_like(labels)
    flipped = torch.zeros_like(labels, dtype=torch.bool)
    prediction = logits.argmax(dim=1)
    choices = labels[:, None] if towards else candidates(logits, labels, config.num_candidates)
    active = torch.arange(len(images), device=images.device)
    steps: list[Step] = []
    for iteration in range(config.max_iterations):
        if len(active) == 0:
            break
        x, start = images[active], total[active]
        source = None if towards else labels[active]
        step, source, target = nearest_boundary(view, x + start, source, choices[active], iteration)
        if record:
            steps.append(Step(active, start, source, target, iteration))
        moved = start + step
        total[active] = moved
        iterations[active] += 1
        now = view(x + factor * moved, iteration).argmax(dim=1)
        prediction[active] = now
        done = (now == labels[active]) == towards
        flipped[active] = done
        active = active[~done]
    return Perturbation(factor * total, iterations, flipped, prediction, steps)


def nearest_boundary(
    view: AttackView, points: Tensor, source: Tensor | None, choices: Tensor, draw: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The step to the nearest of the linearised boundaries.

    Args:
        view: the net.
        points: (A, C, H, W) where to linearise.
        source: (A,) class to leave, or None for the class of highest logit at the point.
        choices: (A, M) classes to consider moving to.
        draw: of the dropout masks.

    Returns:
        The step |f| w / ||w||^2 with f the difference of logits and w its gradient, (A, C, H, W),
        zero where w vanishes or is not finite; the class left, (A,); the class chosen, (A,).
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = view(points, draw)
        if source is None:
            source = logits.argmax(dim=1)
        gaps = logits.gather(1, choices) - logits.gather(1, source[:, None])
        best = torch.full_like(gaps[:, 0], torch.inf)
        step = torch.zeros_like(points)
        chosen = choices[:, 0].clone()
        for m in range(choices.shape[1]):
            last = m == choices.shape[1] - 1
            gradient = _gradient(gaps[:, m], points, view.seed_scale, retain_graph=not last)
            norm = gradient.flatten(1).norm(dim=1)
            distance = gaps[:, m].detach().abs() / norm
            nearer = distance < best  # False for NaN and for a vanished gradient's infinity
            best = torch.where(nearer, distance, best)
            chosen = torch.where(nearer, choices[:, m], chosen)
            step = torch.where(_wide(nearer), _wide(distance) * (gradient / _wide(norm)), step)
    return step.detach(), source, chosen


def linear_step(view: AttackView, points: Tensor, step: Step) -> Tensor:
    """The same step towards a class already chosen, as a differentiable function of the
    parameters and of ``points`` (A, C, H, W), which must require grad."""
    logits = view(points, step.draw)
    chosen = torch.stack([step.source, step.target], dim=1)
    source, target = logits.gather(1, chosen).unbind(dim=1)
    gap = target - source
    gradient = _gradient(gap, points, view.seed_scale, create_graph=True)
    # Not |f| w / ||w||^2 as written: the square of a small norm leaves fp32's range.
    norm = gradient.flatten(1).norm(dim=1)
    norm = norm.where(norm > 0, torch.inf)
    return _wide(gap.abs() / norm) * (gradient / _wide(norm))


def _gradient(values: Tensor, points: Tensor, scale: float, **graph: bool) -> Tensor:
    """Per-sample gradients of (A,) values; the seed is scaled for half precision."""
    seed = torch.full_like(values, scale)
    (gradient,) = torch.autograd.grad(values, points, seed, **graph)
    return gradient if scale == 1.0 else gradient / scale


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
