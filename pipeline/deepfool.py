"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016), as Deep Defense uses it.

Finds perturbations without a graph. Only unfinished samples stay in the batch. The record of the
steps is what `pipeline.regularizer` differentiates; evaluation uses the perturbation alone.
"""

import itertools
from dataclasses import dataclass, field, replace
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
    iteration: int  # counted from 0


class Crossed(NamedTuple):
    """A graph at x + delta of samples whose class was found changed there, among others."""

    graph: Graph
    rows: Tensor  # (A,) int64, of the graph
    samples: Tensor  # (A,) int64, positions in the batch


@dataclass(frozen=True)
class Perturbation:
    """What the attack found for a batch of N images."""

    delta: Tensor  # (N, C, H, W), with the overshoot
    iterations: Tensor  # (N,) int64, steps taken
    flipped: Tensor  # (N,) bool, whether the class at x + delta is the wanted one
    prediction: Tensor  # (N,) int64, class at x + delta
    clean: Tensor  # (N,) int64, class at x
    steps: list[Step] = field(default_factory=list)
    crossed: list[Crossed] = field(default_factory=list)  # at most one, of half the batch or more


def candidates(logits: Tensor, labels: Tensor, number: int) -> Tensor:
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


@torch.no_grad()
def deepfool(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None = None,
    *,
    graph: Graph | None = None,
    record: bool = False,
    keep_graph: bool = False,
    at_once: int | None = None,
) -> Perturbation:
    """Smallest perturbation, to first order, that changes the class of each image.

    An image that has its label now (in T) leaves it: it moves along w_k - w_label to the nearest
    class k. An image that has not (in F) moves along w_label - w_current, the current class read
    anew in each iteration, until it has. Whether it is done is tested at x + (1 + overshoot) * sum
    of the steps. Each iteration linearises at x plus the sum of the steps, as the Deep Defense
    authors do, or with ``config.linearize_at`` tested at the point where the class was tested, as
    DeepFool's own authors do: that saves a forward.

    Args:
        view: the net.
        images: (N, C, H, W), in the network's input space.
        config: candidates, iterations, overshoot, and how classes are chosen.
        labels: (N,). Default: the classes that the images have now.
        graph: of the clean images, if the caller has it: saves one forward.
        record: keep the steps for the regulariser.
        keep_graph: with ``linearize_at`` tested and the whole batch in the net at once, keep the
            graph of the test that most samples passed.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    size = at_once or len(images)
    if len(images) <= size:
        return _sweep(view, images, config, labels, graph, record, keep_graph)
    given = itertools.repeat(None) if labels is None else labels.split(size)
    parts = zip(images.split(size), given, strict=labels is not None)
    return _join([_sweep(view, x, config, y, record=record) for x, y in parts])


def _sweep(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None,
    graph: Graph | None = None,
    record: bool = False,
    keep_graph: bool = False,
) -> Perturbation:
    """`deepfool` of a batch that the net takes at once."""
    graph = graph or view.graph(images)
    logits = graph.logits.detach()
    clean = logits.argmax(dim=1)
    labels = clean if labels is None else labels
    towards = clean != labels
    factor = 1.0 + config.overshoot
    delta, iterations = torch.zeros_like(images), torch.zeros_like(labels)
    prediction, flipped = clean.clone(), torch.zeros_like(towards)
    choices = candidates(logits, labels, config.num_candidates)
    choices[towards] = labels[towards, None]
    # Of the unfinished samples, compact: each pass over an image costs time.
    active = torch.arange(len(images), device=images.device)
    x, moved, label, back = images, torch.zeros_like(images), labels, towards
    rows = active  # of the graph: where the active samples are
    # A graph of more samples than the replay's would have drawn other dropout masks.
    reuse = config.linearize_at == "tested" and view.seed is None
    steps: list[Step] = []
    crossed: list[Crossed] = []
    for iteration in range(config.max_iterations):
        if graph is None:
            graph = view.graph(torch.add(x, moved, alpha=config.reach), iteration)
            rows = torch.arange(len(active), device=x.device)
        source = torch.where(back, graph.logits.detach()[rows].argmax(dim=1), label)
        held, graph = [graph], None
        found = nearest_boundary(view, held, rows, source, choices, back, config, iteration)
        if config.classes == "first" and iteration == 0:
            choices = found.target[:, None]
        moved = torch.add(found.move, moved, alpha=config.reach)
        last = iteration + 1 == config.max_iterations
        tested = torch.add(x, moved, alpha=factor)
        if reuse and not last:
            graph = view.graph(tested)
        now = (graph.logits.detach() if graph else view(tested, iteration)).argmax(dim=1)
        done = (now == label) == back
        prediction[active], flipped[active], iterations[active] = now, done, iteration + 1
        if record:
            steps.append(Step(active, **found._asdict(), iteration=iteration))
        ended = (done | last).nonzero().squeeze(1)
        delta[active[ended]] = factor * moved[ended]
        rows = (~done).nonzero().squeeze(1)
        # With what comes after it, such a graph takes no more memory than one of all images.
        fits = len(now) + len(rows) <= len(images) <= 2 * len(ended)
        if keep_graph and graph is not None and fits:
            crossed.append(Crossed(graph, ended, active[ended]))
        if len(rows) == 0 or last:
            break
        active, label, back, choices = active[rows], label[rows], back[rows], choices[rows]
        x, moved = x[rows], moved[rows]
        if 2 * len(rows) <= len(done):
            graph = None  # a new forward of few costs less than gradients of all
    return Perturbation(delta, iterations, flipped, prediction, clean, steps, crossed)


def _join(parts: list[Perturbation]) -> Perturbation:
    """Of consecutive parts of a batch."""
    steps: list[Step] = []
    begin = 0
    for part in parts:
        steps += (replace(step, samples=step.samples + begin) for step in part.steps)
        begin += len(part.delta)
    names = ("delta", "iterations", "flipped", "prediction", "clean")
    return Perturbation(*(torch.cat([getattr(part, n) for part in parts]) for n in names), steps)


class Nearest(NamedTuple):
    """The nearest of the linearised boundaries, for A samples; fields as in `Step`."""

    move: Tensor
    source: Tensor
    target: Tensor
    gap: Tensor
    norm: Tensor


def nearest_boundary(
    view: AttackView,
    held: list[Graph],
    rows: Tensor,
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
        held: one graph, where to linearise; taken out, so that it is freed before another forward.
        rows: (A,) where the samples are in the graph.
        source: (A,) class to leave.
        choices: (A, M) classes to consider moving to.
        single: (A,) bool, samples whose first choice is their only one.
        config: visit and safety.
        draw: of the dropout masks.
    """
    # Those with a gradient in this round, and where they are in the graph.
    samples, places = torch.arange(len(source), device=source.device), rows
    graph = held.pop()
    points = graph.points.detach()
    gaps = gaps_of(graph.logits.detach()[rows], source, choices)
    spread = torch.ones_like(gaps)
    if config.visit == "lazy" and choices.shape[1] > 1:
        spread = view.class_distances(source, choices)
        order = (gaps.abs() / spread).argsort(dim=1)
        gaps, spread, choices = (v.gather(1, order) for v in (gaps, spread, choices))
    best = torch.full_like(gaps[:, 0], torch.inf)  # distance
    norms, steepest = best.clone(), torch.zeros_like(best)  # largest ||w|| / spread so far
    chosen, w = torch.zeros_like(source), None
    for m in range(choices.shape[1]):
        if m > 0:
            more = ~single
            if config.visit == "lazy":
                more &= gaps[:, m].abs() < config.safety * steepest * spread[:, m] * best
            wanting = more.nonzero().squeeze(1)
            if len(wanting) == 0:
                break
            # A new forward of few costs less than gradients of many; with dropout it would draw
            # other masks.
            if 2 * len(wanting) <= len(graph.points) and view.seed is None:
                samples, places = wanting, torch.arange(len(wanting), device=source.device)
                graph = gap = None  # both hold the old one
                graph = view.graph(points[rows[samples]], draw)
        with torch.enable_grad():
            gap = gaps_of(graph.logits[places], source[samples], choices[samples, m : m + 1])[:, 0]
        gradient = view.gap_gradient(graph, gap)
        if len(places) < len(gradient):
            gradient = gradient[places]
        norm = lengths(gradient)
        distance = gap.detach().abs() / norm
        steepest[samples] = torch.maximum(steepest[samples], norm / spread[samples, m])
        nearer = distance < best[samples]  # False for NaN and for a vanished gradient's infinity
        changed = samples[nearer]
        best[changed], norms[changed], chosen[changed] = distance[nearer], norm[nearer], m
        if w is None:
            w = gradient
        else:
            w[changed] = gradient[nearer]
    move = w.mul_(wide(best / norms))
    move[best.isinf()] = 0.0  # no finite distance: no step
    pick = chosen[:, None]
    return Nearest(move, source, choices.gather(1, pick)[:, 0], gaps.gather(1, pick)[:, 0], norms)


def gaps_of(logits: Tensor, source: Tensor, choices: Tensor) -> Tensor:
    """Logits of the choices minus that of the source, (A, M)."""
    return logits.gather(1, choices) - logits.gather(1, source[:, None])


def lengths(images: Tensor) -> Tensor:
    """L2 norms (A,) of images (A, C, H, W), whatever their memory format."""
    return torch.linalg.vector_norm(images, dim=tuple(range(1, images.dim())))


def wide(values: Tensor) -> Tensor:
    """(A,) values beside images: (A, 1, 1, 1)."""
    return values[:, None, None, None]
