"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016), as Deep Defense uses it.

Finds perturbations without a graph. Only unfinished samples stay in the batch. The record of the
steps is what `pipeline.regularizer` differentiates; evaluation uses the perturbation alone.
"""

import itertools
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.linearized_step import candidate_classes, loss_gradient_step, nearest_boundary
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView, ForwardPass, upcast


@dataclass(frozen=True)
class Step:
    """One iteration, for the A samples that were unfinished at its beginning."""

    samples: Tensor  # (A,) int64, positions in the batch
    displacement: Tensor  # (A, C, H, W), the step r, for p = 2: |f| w / ||w||^2
    source: Tensor  # (A,) int64, the class moved away from
    target: Tensor  # (A,) int64, the class moved towards
    logit_diff: Tensor  # (A,) f, logit of the target minus that of the source, before the step
    gradient_norm: Tensor  # (A,) ||w||_q, w the gradient of f; infinite where it vanished
    toward_label: Tensor  # (A,) bool, samples that move towards their label
    iteration: int  # counted from 0


class BoundaryPass(NamedTuple):
    """A graph at x + delta of samples whose class was found changed there, among others."""

    graph: ForwardPass
    rows: Tensor  # (A,) int64, of the graph
    samples: Tensor  # (A,) int64, positions in the batch


@dataclass(frozen=True)
class Perturbation:
    """What the attack found for a batch of N images."""

    delta: Tensor  # (N, C, H, W), with the overshoot
    iterations: Tensor  # (N,) int64, steps taken
    flipped: Tensor  # (N,) bool, whether the class at x + delta is the wanted one
    no_gradient: Tensor  # (N,) bool, left because its gradient vanished or was not finite
    prediction: Tensor  # (N,) int64, class at x + delta
    clean: Tensor  # (N,) int64, class at x
    steps: list[Step] = field(default_factory=list)
    # at most one, of half the batch or more
    boundary_passes: list[BoundaryPass] = field(default_factory=list)

    @classmethod
    def empty(cls, images: Tensor, clean: Tensor) -> "Perturbation":
        """To be entered into."""
        no = torch.zeros_like(clean, dtype=torch.bool)
        none = torch.zeros_like(clean)
        return cls(torch.zeros_like(images), none, no, no.clone(), clean.clone(), clean)

    def write_rows(self, done: "IterationResult", ended: Tensor, delta: Tensor, first: int) -> None:
        """Write the results of the rows ``ended`` of an iteration; keys count from ``first``."""
        key = done.state.key[ended] - first
        self.delta[key] = delta
        self.iterations[key] = done.state.iteration[ended]
        self.flipped[key], self.no_gradient[key] = done.flipped[ended], done.no_gradient[ended]
        self.prediction[key] = done.prediction[ended]


@dataclass(frozen=True)
class AttackState:
    """A samples of any batches on their way to a boundary."""

    key: Tensor  # (A,) int64, the caller's numbers of the samples
    images: Tensor  # (A, C, H, W)
    total_step: Tensor  # (A, C, H, W), sum of the steps so far
    label: Tensor  # (A,) int64, class to leave, or with towards to reach
    toward_label: Tensor  # (A,) bool
    choices: Tensor  # (A, M) int64, classes to consider moving to
    iteration: Tensor  # (A,) int64, steps taken

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: Tensor | slice) -> "AttackState":
        """Some of the samples."""
        return AttackState(*(getattr(self, f.name)[rows] for f in fields(AttackState)))

    @classmethod
    def join(cls, parts: list["AttackState"]) -> "AttackState":
        """Of several parts, which have as many choices."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


class IterationResult(NamedTuple):
    """What an iteration did to A samples."""

    state: AttackState  # all A, moved
    step: Step  # samples: the keys
    prediction: Tensor  # (A,) class at the point that was tested
    flipped: Tensor  # (A,) bool, whether it is the wanted one
    no_gradient: Tensor  # (A,) bool, no finite step was found
    graph: ForwardPass | None  # at the points that were tested, if wanted

    @property
    def ended(self) -> Tensor:
        """(A,) bool: flipped, or without a step to take."""
        return self.flipped | self.no_gradient


def initial_state(
    view: AttackView,
    images: Tensor,
    logits: Tensor,
    config: AttackConfig,
    labels: Tensor | None = None,
    key: Tensor | None = None,
) -> AttackState:
    """The samples (N, C, H, W) of a batch before their first step; see `deepfool`."""
    clean = logits.argmax(dim=1)
    labels = clean if labels is None else labels
    towards = clean != labels
    choices = candidate_classes(logits, labels, config.num_candidates)
    choices[towards] = labels[towards, None]
    key = torch.arange(len(images), device=images.device) if key is None else key
    none = torch.zeros_like(labels)
    return AttackState(key, images, torch.zeros_like(images), labels, towards, choices, none)


@torch.no_grad()
def deepfool_iteration(
    view: AttackView,
    running: AttackState,
    config: AttackConfig,
    held: list[ForwardPass] | None = None,
    rows: Tensor | None = None,
    *,
    iteration: int = 0,
    keep_graph: bool = False,
) -> IterationResult:
    """One iteration of all samples: linearise, step to the nearest boundary, test.

    Args:
        view: the net.
        running: the samples.
        config: as of `deepfool`.
        held: one graph of points where to linearise, if there is one; taken out, so that it is
            freed as early as can be.
        rows: (A,) where the samples are in that graph. Default: in order.
        iteration: of the step in the record.
        keep_graph: test by a forward with a graph, and hand it out.
    """
    x, label, choices = running.images, running.label, running.choices
    if not held:
        points = torch.add(x, running.total_step, alpha=config.reach)
        held = [view.forward_with_grad(view.clip_(points), running.key)]
        rows = None
    rows = torch.arange(len(running), device=x.device) if rows is None else rows
    source = torch.where(running.toward_label, held[0].logits.detach()[rows].argmax(dim=1), label)
    where = view, held, rows, source, choices, running.toward_label
    if config.step_direction == "loss_gradient":
        found = loss_gradient_step(*where, config)
    else:
        found = nearest_boundary(*where, running.key, config)
    if config.target_class == "fixed":
        choices = found.target[:, None]
    moved = torch.add(found.displacement, running.total_step, alpha=config.reach)
    tested = view.clip_(torch.add(x, moved, alpha=1.0 + config.overshoot))
    graph = view.forward_with_grad(tested, running.key) if keep_graph else None
    now = (graph.logits.detach() if graph else view(tested, running.key)).argmax(dim=1)
    after = replace(running, total_step=moved, choices=choices, iteration=running.iteration + 1)
    return IterationResult(
        after,
        Step(
            running.key, **found._asdict(), toward_label=running.toward_label, iteration=iteration
        ),
        now,
        (now == label) == running.toward_label,
        found.gradient_norm.isinf(),
        graph,
    )


def perturbation(view: AttackView, running: AttackState, config: AttackConfig) -> Tensor:
    """What the steps so far amount to, (A, C, H, W): with the overshoot, and cut to the bounds."""
    factor = 1.0 + config.overshoot
    if view.bounds is None:
        return factor * running.total_step
    points = torch.add(running.images, running.total_step, alpha=factor)
    return view.clip_(points) - running.images


@torch.no_grad()
def deepfool(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None = None,
    *,
    graph: ForwardPass | None = None,
    record: bool = False,
    keep_graph: bool = False,
    at_once: int | None = None,
) -> Perturbation:
    """Smallest perturbation, to first order, that changes the class of each image.

    An image that has its label now (in T) leaves it: it moves along w_k - w_label to the nearest
    class k. An image that has not (in F) moves along w_label - w_current, the current class read
    anew in each iteration, until it has. Whether it is done is tested at x + (1 + overshoot) * sum
    of the steps. Each iteration linearises at x plus the sum of the steps, as the Deep Defense
    authors do, or with ``linearize_at`` overshot at the point where the class was tested, as
    DeepFool's own authors do: that saves a forward.

    Args:
        view: the net.
        images: (N, C, H, W), in the network's input space.
        config: candidates, iterations, overshoot, norm, and how classes are chosen.
        labels: (N,). Default: the classes that the images have now.
        graph: of the clean images, if the caller has it: saves one forward.
        record: keep the steps for the regulariser.
        keep_graph: with ``linearize_at`` overshot and the whole batch in the net at once, keep the
            graph of the test that most samples passed.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    size = len(images) if at_once is None else at_once
    if len(images) <= size:
        return _sweep(view, images, config, labels, graph, record, keep_graph)
    given = itertools.repeat(None) if labels is None else labels.split(size)
    parts = zip(images.split(size), given, strict=labels is not None)
    return _join(
        [
            _sweep(view, x, config, y, record=record, first=number * size)
            for number, (x, y) in enumerate(parts)
        ]
    )


def _sweep(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None,
    graph: ForwardPass | None = None,
    record: bool = False,
    keep_graph: bool = False,
    first: int = 0,
) -> Perturbation:
    """`deepfool` of images that the net takes at once, the batch's from position ``first`` on."""
    key = torch.arange(first, first + len(images), device=images.device)
    graph = graph or view.forward_with_grad(images, key)
    logits = graph.logits.detach()
    running = initial_state(view, images, logits, config, labels, key)
    result = Perturbation.empty(images, logits.argmax(dim=1))
    reuse = config.linearize_at == "overshot"
    rows = None  # of the graph: where the running samples are
    for iteration in range(config.max_iterations):
        last = iteration + 1 == config.max_iterations
        held, graph = [graph] if graph else [], None
        done = deepfool_iteration(
            view, running, config, held, rows, iteration=iteration, keep_graph=reuse and not last
        )
        if record:
            result.steps.append(done.step)
        ended = (done.ended | last).nonzero().squeeze(1)
        result.write_rows(done, ended, perturbation(view, done.state.take(ended), config), first)
        rows = (~done.ended).nonzero().squeeze(1)
        # With what comes after it, such a graph takes no more memory than one of all images.
        fits = len(running) + len(rows) <= len(images) <= 2 * len(ended)
        if keep_graph and done.graph is not None and fits:
            result.boundary_passes.append(BoundaryPass(done.graph, ended, running.key[ended]))
        if len(rows) == 0 or last:
            break
        # A new forward of few costs less than gradients of all.
        graph = done.graph if 2 * len(rows) > len(running) else None
        running = done.state.take(rows)
        del done  # and the graph with it, before another is made
    return result


def _join(parts: list[Perturbation]) -> Perturbation:
    """Of consecutive parts of a batch."""
    steps = [step for part in parts for step in part.steps]
    names = ("delta", "iterations", "flipped", "no_gradient", "prediction", "clean")
    return Perturbation(*(torch.cat([getattr(part, n) for part in parts]) for n in names), steps)
