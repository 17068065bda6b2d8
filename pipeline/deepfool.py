"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016), as Deep Defense uses it.

Finds perturbations without a graph. Only unfinished samples stay in the batch. The record of the
steps is what `pipeline.regularizer` differentiates; evaluation uses the perturbation alone.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import AttackConfig
from pipeline.view import AttackView, Graph, upcast


@dataclass(frozen=True)
class Step:
    """One iteration, for the A samples that were unfinished at its beginning."""

    samples: Tensor  # (A,) int64, positions in the batch
    move: Tensor  # (A, C, H, W), the step r = |f| w / ||w||^2
    source: Tensor  # (A,) int64, the class moved away from
    target: Tensor  # (A,) int64, the class moved towards
    gap: Tensor  # (A,) f, logit of the target minus that of the source, before the step
    norm: Tensor  # (A,) ||w||, w the gradient of f; infinite where it vanished
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
    towards: Tensor | None = None,
    graph: Graph | None = None,
    record: bool = False,
) -> Perturbation:
    """Smallest perturbation, to first order, that changes the class of each image.

    Linearises at x plus the sum of the steps (without the overshoot, as the Deep Defense
    authors do), and stops for a sample once its class at x + (1 + overshoot) * sum is another
    one than its label (or, with ``towards``, is the label).

    Args:
        view: the net.
        images: (N, C, H, W), in the network's input space.
        labels: (N,) the class to leave, which each image must have now; with ``towards`` the
            class to reach, which the image must not have now.
        logits: (N, K) at the clean images.
        config: candidates, iterations, overshoot, and how classes are chosen.
        towards: (N,) bool, samples to move along w_label - w_current, the current class read
            anew in each iteration. Default: none.
        graph: of the clean images, if the caller has it: saves one forward.
        record: keep the steps for the regulariser.
    """
    images = upcast(images.detach())
    towards = torch.zeros_like(labels, dtype=torch.bool) if towards is None else towards
    factor = 1.0 + config.overshoot
    total = torch.zeros_like(images)
    iterations = torch.zeros_like(labels)
    flipped = torch.zeros_like(towards)
    prediction = logits.argmax(dim=1)
    choices = candidates(logits, labels, config.num_candidates)
    choices[towards] = labels[towards, None]
    active = torch.arange(len(images), device=images.device)
    steps: list[Step] = []
    for iteration in range(config.max_iterations):
        if len(active) == 0:
            break
        x, label, back = images[active], labels[active], towards[active]
        if graph is None or iteration > 0:
            graph = view.graph(x + total[active], iteration)
        source = torch.where(back, graph.logits.argmax(dim=1), label)
        found = nearest_boundary(view, graph, source, choices[active], back, config, iteration)
        graph = None  # free it before the next forward
        if config.classes == "first" and iteration == 0:
            choices = found.target[:, None]
        moved = total[active] + found.move
        total[active] = moved
        iterations[active] += 1
        now = view(x + factor * moved, iteration).argmax(dim=1)
        prediction[active] = now
        done = (now == label) == back
        flipped[active] = done
        if record:
            steps.append(Step(active, **found._asdict(), draw=iteration))
        active = active[~done]
    return Perturbation(factor * total, iterations, flipped, prediction, steps)


class Nearest(NamedTuple):
    """The nearest of the linearised boundaries, for A samples; fields as in `Step`."""

    move: Tensor
    source: Tensor
    target: Tensor
    gap: Tensor
    norm: Tensor


def nearest_boundary(
    view: AttackView,
    graph: Graph,
    source: Tensor,
    choices: Tensor,
    single: Tensor,
    config: AttackConfig,
    draw: int = 0,
) -> Nearest:
    """The step to the nearest of the linearised boundaries.

    A boundary's distance is |f| / ||w||. Each round computes one more w for every sample. With
    ``config.visit`` lazy, samples visit their candidates in the order of |f| over the distance
    of the two classes' weights in the last layer, which ||w|| roughly follows; a sample stops
    when no candidate can be nearer unless its gradient is ``config.safety`` times larger than
    the largest seen leads to expect.

    Args:
        view: the net.
        graph: where to linearise.
        source: (A,) class to leave.
        choices: (A, M) classes to consider moving to.
        single: (A,) bool, samples whose first choice is their only one.
        config: visit and safety.
        draw: of the dropout masks.
    """
    rows = torch.arange(len(source), device=source.device)
    points = graph.points.detach()
    gaps = gaps_of(graph.logits.detach(), source, choices)
    lazy = config.visit == "lazy" and choices.shape[1] > 1
    spread = view.class_distances(source, choices) if lazy else torch.ones_like(gaps)
    if lazy:
        order = (gaps.abs() / spread).argsort(dim=1)
        gaps, spread, choices = (v.gather(1, order) for v in (gaps, spread, choices))
    best = torch.full_like(gaps[:, 0], torch.inf)  # distance
    norms, steepest = best.clone(), torch.zeros_like(best)  # largest ||w|| / spread so far
    chosen, move = torch.zeros_like(source), torch.zeros_like(points)
    for m in range(choices.shape[1]):
        if m > 0:
            more = ~single
            if lazy:
                reach = config.safety * steepest * spread[:, m] * best
                more &= gaps[:, m].abs() < reach
            wanting = more.nonzero().squeeze(1)
            if len(wanting) == 0:
                break
            # A new forward of few costs less than gradients of many; with dropout it would draw
            # other masks.
            if 2 * len(wanting) <= len(rows) and view.seed is None:
                rows = wanting
                graph = view.graph(points[rows], draw)
        with torch.enable_grad():
            gap = gaps_of(graph.logits, source[rows], choices[rows, m : m + 1])[:, 0]
        gradient = view.gap_gradient(graph, gap)
        norm = gradient.flatten(1).norm(dim=1)
        distance = gap.detach().abs() / norm
        steepest[rows] = torch.maximum(steepest[rows], norm / spread[rows, m])
        nearer = distance < best[rows]  # False for NaN and for a vanished gradient's infinity
        changed = rows[nearer]
        best[changed], norms[changed], chosen[changed] = distance[nearer], norm[nearer], m
        move[changed] = gradient[nearer] * wide(distance[nearer] / norm[nearer])
    pick = chosen[:, None]
    return Nearest(move, source, choices.gather(1, pick)[:, 0], gaps.gather(1, pick)[:, 0], norms)


def gaps_of(logits: Tensor, source: Tensor, choices: Tensor) -> Tensor:
    """Logits of the choices minus that of the source, (A, M)."""
    return logits.gather(1, choices) - logits.gather(1, source[:, None])


def wide(values: Tensor) -> Tensor:
    """(A,) values beside images: (A, 1, 1, 1)."""
    return values[:, None, None, None]
