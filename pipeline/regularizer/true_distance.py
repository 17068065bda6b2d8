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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.projection import LinearizedBoundary, linearize_boundary, project
from pipeline.models.attack_view import ForwardPass
from pipeline.regularizer.trace import AttackTrace, BoundaryForward, logit_diff_gradients

# Share of the full projection in the first, the second and the later projections.
PROJECTION_SHARES = (1.0, 0.5, 0.3)


def true_distance(trace: AttackTrace, labels: Tensor) -> Tensor:
    """The distance (N,) in the norm of the attack, differentiable by the parameters.

    Of a misclassified image it is the distance to the boundary of its label and one other class; if
    a third class lies between them, the label is farther away.

    Args:
        trace: of DeepFool; samples that it has not flipped are moved on. Its steps are not used.
        labels: (N,) class to leave, or to reach where the image is misclassified.
    """
    rows = torch.arange(len(labels), device=labels.device).split(trace.at_once)
    keep_graph = len(rows) == 1
    ends = [_end_of(trace, labels, part, keep_graph) for part in rows]
    return _TrueDistance.apply(trace, ends, *trace.view.parameters())


@dataclass(frozen=True)
class _End:
    """The last linearisation of A samples."""

    rows: Tensor  # (A,) int64, positions in the batch
    points: Tensor  # (A, C, H, W)
    source: Tensor  # (A,) int64
    target: Tensor  # (A,) int64
    distance: Tensor  # (A,)
    weight: Tensor  # (A,) dd/df; zero without a gradient
    kept: list[ForwardPass]  # the graph at the points, if it was kept; used once


def _end_of(trace: AttackTrace, labels: Tensor, rows: Tensor, keep_graph: bool) -> _End:
    """Project samples (A,), and linearise at the end."""
    images, labels = trace.images[rows], labels[rows]
    delta = trace.perturbation.delta[rows]
    toward_label = trace.perturbation.clean[rows] != labels
    p = float(trace.config.norm)

    def linearize(delta: Tensor) -> tuple[LinearizedBoundary, ForwardPass]:
        forward = trace.view.forward_with_grad(images + delta, rows)
        return linearize_boundary(trace.view, forward, labels, p, toward_label), forward

    for number in range(trace.config.max_projections):
        # Without a name for the forward pass, which frees its graph before the next is built.
        boundary = linearize(delta)[0]
        share = torch.full_like(boundary.dual_norm, PROJECTION_SHARES[min(number, 2)])
        delta = project(delta, boundary, share, torch.zeros_like(share), p)
    boundary, forward = linearize(delta)
    distance = boundary.distance(delta)
    usable = boundary.dual_norm.isfinite() & (distance > 0)
    return _End(
        rows=rows,
        points=forward.inputs.detach(),
        source=boundary.source,
        target=boundary.target,
        distance=distance.where(usable, per_sample_norm(delta, p)),
        weight=-1.0 / boundary.dual_norm.where(usable, torch.inf),
        kept=[forward] if keep_graph else [],
    )


class _TrueDistance(torch.autograd.Function):
    """Forward returns the distance; backward differentiates the boundary's shift."""

    @staticmethod
    def forward(ctx: Any, trace: AttackTrace, ends: list[_End], *_parameters: Tensor) -> Tensor:
        ctx.trace, ctx.ends = trace, ends
        return torch.cat([end.distance for end in ends])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        view = ctx.trace.view

        def forwards() -> Iterator[BoundaryForward]:
            for end in ctx.ends:
                with torch.enable_grad():
                    kept = end.kept.pop().logits if end.kept else None
                    logits = view(end.points, end.rows) if kept is None else kept
                del kept
                weight = adjoint[end.rows] * end.weight
                forward = BoundaryForward(logits, end.target, end.source, weight)
                del logits
                yield forward
                del forward

        return None, None, *logit_diff_gradients(view.parameters(), forwards())
