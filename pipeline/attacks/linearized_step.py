"""One iteration of DeepFool: the nearest of the linearised class boundaries, and the step to it.

In: a graph of points, the class to leave and the classes to consider. Out: `LinearizedStep`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, steepest_step
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView, ForwardPass


def candidate_classes(logits: Tensor, labels: Tensor, number: int) -> Tensor:
    """The classes to move to: the ``number`` highest logits, in that order, without the label.

    Args:
        logits: (N, K) at the clean images; in T the label is the class of highest logit.
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


class LinearizedStep(NamedTuple):
    """The nearest of the linearised boundaries, for A samples; fields as in `Step`."""

    displacement: Tensor
    source: Tensor
    target: Tensor
    logit_diff: Tensor
    gradient_norm: Tensor


def nearest_boundary(
    view: AttackView,
    held: list[ForwardPass],
    rows: Tensor,
    source: Tensor,
    choices: Tensor,
    single: Tensor,
    key: Tensor,
    config: AttackConfig,
) -> LinearizedStep:
    """The step to the nearest of the linearised boundaries.

    A boundary's distance is |f| / ||w||, in the norm dual to ``config.norm``. Each round computes
    one more w for every sample. With ``candidate_search`` pruned, samples visit their candidates in
    the order of |f| over the distance of the two classes' weights in the last layer, which ||w||
    roughly follows; a sample stops when no candidate can be nearer unless its gradient is
    ``config.pruning_factor`` times larger than the largest seen leads to expect.

    Args:
        view: the net.
        held: one graph, where to linearise; taken out, so that it is freed before another forward.
        rows: (A,) where the samples are in the graph.
        source: (A,) class to leave.
        choices: (A, M) classes to consider moving to.
        single: (A,) bool, samples whose first choice is their only one.
        key: (A,) which images of the batch the samples are.
        config: candidate_search, pruning_factor and norm.
    """
    # Those with a gradient in this round, and where they are in the graph.
    samples, places = torch.arange(len(source), device=source.device), rows
    graph = held.pop()
    points = graph.inputs.detach()
    dual = dual_exponent(config.norm)
    gaps = logit_differences(graph.logits.detach()[rows], source, choices)
    spread = torch.ones_like(gaps)
    if config.candidate_search == "pruned" and choices.shape[1] > 1:
        spread = view.class_weight_distances(source, choices)
        order = (gaps.abs() / spread).argsort(dim=1)
        gaps, spread, choices = (v.gather(1, order) for v in (gaps, spread, choices))
    best = torch.full_like(gaps[:, 0], torch.inf)  # distance
    norms, steepest = best.clone(), torch.zeros_like(best)  # largest ||w|| / spread so far
    chosen, w = torch.zeros_like(source), None
    for m in range(choices.shape[1]):
        if m > 0:
            more = ~single
            if config.candidate_search == "pruned":
                more &= gaps[:, m].abs() < config.pruning_factor * steepest * spread[:, m] * best
            wanting = more.nonzero().squeeze(1)
            if len(wanting) == 0:
                break
            # A new forward of few costs less than gradients of many.
            if 2 * len(wanting) <= len(graph.inputs):
                samples, places = wanting, torch.arange(len(wanting), device=source.device)
                graph = gap = None  # both hold the old one
                graph = view.forward_with_grad(points[rows[samples]], key[samples])
        with torch.enable_grad():
            gap = logit_differences(
                graph.logits[places], source[samples], choices[samples, m : m + 1]
            )[:, 0]
        gradient = view.logit_diff_gradient(graph, gap)
        if len(places) < len(gradient):
            gradient = gradient[places]
        norm = per_sample_norm(gradient, dual)
        distance = gap.detach().abs() / norm
        steepest[samples] = torch.maximum(steepest[samples], norm / spread[samples, m])
        nearer = distance < best[samples]  # False for NaN and for a vanished gradient's infinity
        changed = samples[nearer]
        best[changed], norms[changed], chosen[changed] = distance[nearer], norm[nearer], m
        if w is None:
            w = gradient
        else:
            w[changed] = gradient[nearer]
    move = steepest_step(w, norms, best, config.norm)
    move[best.isinf()] = 0.0  # no finite distance: no step
    pick = chosen[:, None]
    return LinearizedStep(
        move, source, choices.gather(1, pick)[:, 0], gaps.gather(1, pick)[:, 0], norms
    )


def loss_gradient_step(
    view: AttackView,
    held: list[ForwardPass],
    rows: Tensor,
    source: Tensor,
    choices: Tensor,
    towards: Tensor,
    config: AttackConfig,
) -> LinearizedStep:
    """The step along the gradient of the cross-entropy, as far as the linearised boundary to the
    choice of highest logit: FGS for p = inf, a normalised gradient step for p = 2.

    Args:
        view: the net.
        held: one graph, where to linearise; taken out.
        rows: (A,) where the samples are in the graph.
        source: (A,) class to leave.
        choices: (A, M) classes to consider moving to.
        towards: (A,) bool, samples whose choice is their label, whose cross-entropy is to fall.
        config: norm.
    """
    graph = held.pop()
    gaps = logit_differences(graph.logits.detach()[rows], source, choices)
    target = choices.gather(1, gaps.abs().argmin(dim=1, keepdim=True))[:, 0]
    return loss_step(view, graph, rows, source, target, towards, config.norm)


def loss_step(
    view: AttackView,
    graph: ForwardPass,
    rows: Tensor | None,
    source: Tensor,
    target: Tensor,
    towards: Tensor,
    p: float,
    create_graph: bool = False,
) -> LinearizedStep:
    """`loss_gradient_step` to a given class; with ``create_graph`` differentiable.

    ``norm`` is <w, n>, w the gradient of f and n the direction of unit p-norm; infinite where f
    does not grow along it. n follows the gradient of log sum exp of the other logits minus the
    label's: that of the cross-entropy in direction, which rounds to nothing where the net is sure.
    """
    with torch.enable_grad():
        logits = graph.logits if rows is None else graph.logits[rows]
        label = torch.where(towards, target, source)[:, None]
        others = logits.scatter(1, label, -torch.inf).logsumexp(dim=1)
        loss = others - logits.gather(1, label)[:, 0]
        rise = torch.where(towards, -loss, loss)
        gap = logit_differences(logits, source, target[:, None])[:, 0]
    w = view.logit_diff_gradient(graph, gap, create_graph)
    steepest = view.logit_diff_gradient(graph, rise, create_graph)
    if rows is not None:
        w, steepest = w[rows], steepest[rows]
    dual = per_sample_norm(steepest, dual_exponent(p))
    unit = steepest_step(steepest, dual.where(dual > 0, torch.inf), torch.ones_like(dual), p)
    slope = (w * unit).flatten(1).sum(dim=1)
    norm = slope.where(slope > 0, torch.inf)
    move = unit * expand_to_images(gap.abs() / norm)
    return LinearizedStep(move, source, target, gap.detach(), norm.detach())


def logit_differences(logits: Tensor, source: Tensor, choices: Tensor) -> Tensor:
    """Logits of the choices minus that of the source, (A, M)."""
    return logits.gather(1, choices) - logits.gather(1, source[:, None])
