"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016), as Deep Defense uses it.

In: a net and images. Out: `Perturbation`. Perturbations are computed without a graph, and only
unfinished samples stay in the batch. The recorded steps are what `pipeline.regularizer`
differentiates; evaluation uses the perturbation alone.

Letters, as in the paper: x is the image, f the logit of the class to reach minus that of the class
to leave, w the gradient of f by the image, r the step of one iteration, for p = 2: |f| w / ||w||^2.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.attacks.attack_state import (
    AttackState,
    BoundaryPass,
    IterationResult,
    Perturbation,
    Step,
    split_rows,
)
from pipeline.attacks.linearized_step import (
    Candidates,
    PointsToLinearize,
    candidate_classes,
    nearest_boundary,
)
from pipeline.attacks.loss_step import loss_gradient_step
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import upcast


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What `deepfool` keeps, and how many images it processes at a time."""

    record: bool = False
    """Keep the steps, for the regulariser."""
    keep_graph: bool = False
    """With ``linearize_at`` overshot and the whole batch in the net at once: keep the forward pass
    of the test that most samples passed."""
    at_once: int | None = None
    """Largest number of images in the net at a time. Default: all."""


def initial_state(
    images: Tensor,
    logits: Tensor,
    config: AttackConfig,
    labels: Tensor | None = None,
    key: Tensor | None = None,
) -> AttackState:
    """The samples of a batch before their first step.

    Args:
        images: (N, C, H, W).
        logits: (N, K) of the images.
        config: num_candidates is used.
        labels: (N,) as in `deepfool`.
        key: (N,) int64, the caller's numbers of the samples. Default: from 0.
    """
    clean = logits.argmax(dim=1)
    labels = clean if labels is None else labels
    toward_label = clean != labels
    choices = candidate_classes(logits, labels, config.num_candidates)
    choices = torch.where(toward_label[:, None], labels[:, None], choices)
    key = torch.arange(len(images), device=images.device) if key is None else key
    return AttackState(
        key=key,
        images=images,
        total_step=torch.zeros_like(images),
        label=labels,
        toward_label=toward_label,
        choices=choices,
        iteration=torch.zeros_like(labels),
        num_queries=torch.ones_like(labels),
    )


@torch.no_grad()
def deepfool_iteration(
    view: AttackView,
    state: AttackState,
    config: AttackConfig,
    points: PointsToLinearize | None = None,
    *,
    iteration: int = 0,
    keep_graph: bool = False,
) -> IterationResult:
    """One iteration of all samples: linearise, step to the nearest boundary, test.

    Args:
        view: the net.
        state: the samples.
        config: as in `deepfool`.
        points: a forward pass of the points where to linearise, if there is one; released early.
        iteration: number of the recorded step.
        keep_graph: test by a forward with a graph, and return it.
    """
    num_forwards = 1  # the test
    if points is None:
        num_forwards = 2
        inputs = torch.add(state.images, state.total_step, alpha=config.reach)
        # `points` alone refers to the forward pass.
        points = PointsToLinearize.all_of(view.forward_with_grad(view.clip_(inputs), state.key))
        del inputs
    source = points.current_classes().where(state.toward_label, state.label)
    candidates = Candidates(state.key, source, state.choices, state.toward_label)
    nearest = loss_gradient_step if config.step_direction == "loss_gradient" else nearest_boundary
    step = nearest(view, points, candidates, config)
    total_step = torch.add(step.displacement, state.total_step, alpha=config.reach)
    tested = view.clip_(torch.add(state.images, total_step, alpha=1.0 + config.overshoot))
    forward = view.forward_with_grad(tested, state.key) if keep_graph else None
    logits = view(tested, state.key) if forward is None else forward.logits.detach()
    prediction = logits.argmax(dim=1)
    return IterationResult(
        state=replace(
            state,
            total_step=total_step,
            choices=step.target[:, None] if config.target_class == "fixed" else state.choices,
            iteration=state.iteration + 1,
            num_queries=state.num_queries + step.num_queries + num_forwards,
        ),
        step=Step(
            state.key, **step._asdict(), toward_label=state.toward_label, iteration=iteration
        ),
        prediction=prediction,
        # argmax of a logit that is no number is a class, too.
        flipped=((prediction == state.label) == state.toward_label) & logits.isfinite().all(dim=1),
        no_gradient=step.gradient_norm.isinf(),
        forward=forward,
    )


def perturbation(
    view: AttackView, state: AttackState, config: AttackConfig, rows: Tensor | slice = slice(None)
) -> Tensor:
    """The perturbation (A, C, H, W) of some samples after the steps so far, with the overshoot and
    clipped."""
    factor = 1.0 + config.overshoot
    total_step = state.total_step[rows]
    if view.bounds is None:
        return factor * total_step
    images = state.images[rows]
    return view.clip_(torch.add(images, total_step, alpha=factor)) - images


@torch.no_grad()
def deepfool(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None = None,
    *,
    points: PointsToLinearize | None = None,
    options: AttackOptions = AttackOptions(),
) -> Perturbation:
    """Smallest perturbation, to first order, that changes the class of each image.

    An image that has its label now (in T) leaves it: it moves along w_k - w_label to the nearest
    class k. An image that has not (in F) moves along w_label - w_current until it has; its current
    class is read again in each iteration. The class is tested at x + (1 + overshoot) times the sum
    of the steps. An iteration linearises at x plus the sum of the steps, as the Deep Defense
    authors do, or with ``config.linearize_at`` overshot at the point where the class was tested, as
    DeepFool's authors do, which saves a forward.

    Args:
        view: the net.
        images: (N, C, H, W), in the network's input space.
        config: candidates, iterations, overshoot, norm, and how classes are chosen.
        labels: (N,). Default: the classes that the images have now.
        points: the clean images in a forward pass, if there is one; released early.
        options: what to keep, and how many images to process at a time.
    """
    images = upcast(images.detach())
    with view.cast_weights_once(images):  # the first forward has a graph if one is kept
        return _in_parts(view, images, config, labels, points, options)


def _in_parts(
    view: AttackView,
    images: Tensor,
    config: AttackConfig,
    labels: Tensor | None,
    points: PointsToLinearize | None,
    options: AttackOptions,
) -> Perturbation:
    """`deepfool` of ``options.at_once`` images at a time."""
    sweep = _Sweep(view, config, options)
    size = len(images) if options.at_once is None else options.at_once
    if len(images) <= size:
        return sweep.run(images, labels, points)
    sweep = _Sweep(view, config, replace(options, keep_graph=False))
    labels_of_parts = itertools.repeat(None) if labels is None else labels.split(size)
    parts = zip(images.split(size), labels_of_parts, strict=labels is not None)
    return Perturbation.concatenate(
        [sweep.run(x, y, first=number * size) for number, (x, y) in enumerate(parts)]
    )


@dataclass(frozen=True)
class _Sweep:
    """`deepfool` of images that the net takes at once."""

    view: AttackView
    config: AttackConfig
    options: AttackOptions

    def run(
        self,
        images: Tensor,
        labels: Tensor | None,
        points: PointsToLinearize | None = None,
        first: int = 0,
    ) -> Perturbation:
        """Attack images, the batch's from position ``first`` on."""
        key = torch.arange(first, first + len(images), device=images.device)
        points = points or PointsToLinearize.all_of(self.view.forward_with_grad(images, key))
        logits = points.logits
        state = initial_state(images, logits, self.config, labels, key)
        result = Perturbation.empty(images, logits.argmax(dim=1))
        all_rows = torch.arange(len(images), device=images.device)
        for iteration in range(self.config.max_iterations):
            last = iteration + 1 == self.config.max_iterations
            done = deepfool_iteration(
                self.view,
                state,
                self.config,
                points,
                iteration=iteration,
                keep_graph=self.config.linearize_at == "overshot" and not last,
            )
            if self.options.record:
                result.steps.append(done.step)
            # The host waits for the GPU here, but not after the last iteration.
            ended, left = (all_rows[: len(state)], all_rows[:0]) if last else split_rows(done.ended)
            delta = perturbation(self.view, done.state, self.config, ended)
            result.write_rows(done, ended, delta, first)
            # With what comes after it, such a graph takes no more memory than one of all images.
            fits = len(state) + len(left) <= len(images) <= 2 * len(ended)
            if self.options.keep_graph and done.forward is not None and fits:
                kept = BoundaryPass(done.forward, ended, state.key[ended])
                result.boundary_passes.append(kept)
            if len(left) == 0 or last:
                break
            points = None
            # A new forward of a few costs less than gradients of all.
            if done.forward is not None and 2 * len(left) > len(state):
                points = PointsToLinearize(done.forward, left)
            state = done.state.take(left)
            del done  # and its graph, before the next is made
        return result
