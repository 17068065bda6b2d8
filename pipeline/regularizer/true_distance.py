"""The distance to the nearest boundary point, and its exact gradient there.

In: an attack that has reached a boundary. Out: the distance d as a differentiable function of the
parameters W.

A few projections move the end of the perturbation r towards the nearest boundary point
(`pipeline.attacks.projection`). There the net is linearised once more: d = (<w, r> - f) / ||w||_q,
with f the logit of the class on the other side minus that of the present one, w its gradient by the
image. At the nearest point r is parallel to w, and by the envelope theorem dd/dW = -(df/dW) /
||w||_q exactly: the change of the nearest point itself has no effect to first order. MMA (Ding et
al., ICLR 2020) and DyART (Xu et al., ICLR 2023) use the same gradient.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.attack_state import Perturbation
from pipeline.attacks.deepfool import AttackOptions, deepfool, initial_state, perturbation
from pipeline.attacks.linearized_step import Candidates, PointsToLinearize, nearest_boundary
from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.projection import LinearizedBoundary, linearize_boundary, project
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.layer_record import Gradients, LayerRecord
from pipeline.regularizer.trace import (
    BoundaryForward,
    add_gradients,
    finite_or_zero,
    logit_diff_gradients,
)

# Share of the full projection in the first, the second and the later projections.
PROJECTION_SHARES = (1.0, 0.5, 0.3)


class TrueDistance(NamedTuple):
    """Distances of a batch of N images."""

    distance: Tensor  # (N,) in the norm of the attack, differentiable by the parameters
    clean: Tensor  # (N,) int64, class at the image
    flipped: Tensor  # (N,) bool, a boundary was reached; untested: there is a linearised distance
    iterations: Tensor  # (N,) int64, of DeepFool


def true_distance(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    *,
    points: PointsToLinearize | None = None,
    at_once: int | None = None,
) -> TrueDistance:
    """The distance to the nearest boundary point.

    DeepFool comes first. With ``max_iterations`` 1 it is one step, and the class is not tested
    after it: the first projection linearises there anyway. Of a misclassified image it is the
    distance to the boundary of its label and one other class; if a third class lies between them,
    the label is farther away.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W) fp32, without a graph.
        labels: (N,) class to leave, or to reach where the image is misclassified.
        config: of the attack.
        points: the images in a forward pass, if there is one; released early.
        at_once: largest number of images in the net at a time. Default: all.
    """
    rows = torch.arange(len(images), device=images.device).split(at_once or len(images))
    # Backward passes come after masks for another batch may have been drawn.
    batch = _Batch(view.with_current_masks(), images, labels, config)
    if config.max_iterations == 1:
        shared = points if len(rows) == 1 else None  # released by the first part that uses it
        start = Perturbation.concatenate([batch.first_step(part, shared) for part in rows])
    else:
        options = AttackOptions(at_once=at_once)
        start = deepfool(view, images, config, labels, points=points, options=options)
    keeps_record = len(rows) == 1 and view.can_record_layers(images)
    ends = [batch.end_of(start, part, keeps_record=keeps_record) for part in rows]
    has_distance = torch.cat([end.weight != 0 for end in ends])
    return TrueDistance(
        _TrueDistance.apply(batch.view, ends, *view.parameters()),
        start.clean,
        has_distance if config.max_iterations == 1 else start.flipped,
        start.iterations,
    )


@dataclass(frozen=True)
class _End:
    """The last linearisation of A samples."""

    rows: Tensor  # (A,) int64, positions in the batch
    points: Tensor  # (A, C, H, W)
    source: Tensor  # (A,) int64
    target: Tensor  # (A,) int64
    distance: Tensor  # (A,)
    weight: Tensor  # (A,) dd/df; zero without a gradient
    record: LayerRecord | None  # of the last linearisation, if it was kept; used once


@dataclass(frozen=True)
class _Batch:
    """The images whose distances are measured; ``rows`` (A,) int64 are positions in it."""

    view: AttackView
    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) int64
    config: AttackConfig

    def first_step(self, rows: Tensor, points: PointsToLinearize | None) -> Perturbation:
        """DeepFool's first step of some images, without a test of the class."""
        images, labels = self.images[rows], self.labels[rows]
        points = points or PointsToLinearize.all_of(self.view.forward_with_grad(images, rows))
        logits = points.logits
        state = initial_state(images, logits, self.config, labels, rows)
        clean = logits.argmax(dim=1)
        source = clean.where(state.toward_label, labels)
        candidates = Candidates(rows, source, state.choices, state.toward_label)
        step = nearest_boundary(self.view, points, candidates, self.config)
        state = replace(state, total_step=step.displacement)
        return replace(
            Perturbation.empty(images, clean),
            delta=perturbation(self.view, state, self.config),
            iterations=torch.ones_like(clean),
            no_gradient=step.gradient_norm.isinf(),
        )

    def end_of(self, start: Perturbation, rows: Tensor, *, keeps_record: bool) -> _End:
        """Project some perturbations, and linearise at the end."""
        images, labels, delta = self.images[rows], self.labels[rows], start.delta[rows]
        toward_label = start.clean[rows] != labels
        p = float(self.config.norm)

        def linearize(delta: Tensor) -> LinearizedBoundary:
            forward = self.view.forward_with_grad(images + delta, rows)
            return linearize_boundary(self.view, forward, labels, p, toward_label)

        for number in range(self.config.max_projections):
            boundary = linearize(delta)
            share = torch.full_like(boundary.dual_norm, PROJECTION_SHARES[min(number, 2)])
            delta = project(delta, boundary, share, torch.zeros_like(share), p)
        record = self.view.record_layers() if keeps_record else None
        with record or nullcontext():
            boundary = linearize(delta)
        distance = boundary.distance(delta)
        usable = boundary.dual_norm.isfinite() & (distance > 0)
        return _End(
            rows=rows,
            points=images + delta,
            source=boundary.source,
            target=boundary.target,
            distance=distance.where(usable, per_sample_norm(delta, p)),
            weight=-1.0 / boundary.dual_norm.where(usable, torch.inf),
            record=record,
        )


class _TrueDistance(torch.autograd.Function):
    """Forward returns the distance; backward differentiates the boundary's shift."""

    @staticmethod
    def forward(ctx: Any, view: AttackView, ends: list[_End], *_parameters: Tensor) -> Tensor:
        ctx.view, ctx.ends = view, ends
        return torch.cat([end.distance for end in ends])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        if not ctx.ends:
            raise RuntimeError("the regulariser's record is freed by the first backward pass")
        view: AttackView = ctx.view
        total: Gradients = [None] * len(view.parameters())
        while ctx.ends:
            end: _End = ctx.ends.pop()
            weight = adjoint[end.rows] * end.weight
            if end.record is not None:
                terms = end.record.gradients(weight / view.gradient_scale)
            else:
                with torch.enable_grad():
                    logits = view(end.points, end.rows)
                forward = BoundaryForward(logits, end.target, end.source, weight)
                terms = logit_diff_gradients(view, [forward])
                del logits, forward  # and the graph, before the next is made
            total = add_gradients(total, terms)
        return None, None, *finite_or_zero(view, total)
