"""The distance to a boundary that is linearised at the end of a perturbation, and its gradient.

In: images, and perturbations r that end near a boundary. Out: the distance d as a differentiable
function of the parameters W.

The net is linearised at x + r: d = (<w, r> - f) / ||w||_q, with f the logit of the class on the
other side minus that of the present one, w its gradient by the image. Where r ends at the nearest
boundary point, it is parallel to w, and by the envelope theorem dd/dW = -(df/dW) / ||w||_q exactly:
the change of the nearest point itself has no effect to first order. MMA (Ding et al., ICLR 2020)
and DyART (Xu et al., ICLR 2023) use the same gradient.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.projection import LinearizedBoundary, linearize_boundary, project
from pipeline.models.attack_view import AttackView
from pipeline.models.layer_record import LayerRecord
from pipeline.models.parameter_gradients import Gradients, add_gradients
from pipeline.models.recorded_layers import LayerConstants
from pipeline.regularizer.trace import (
    BoundaryForward,
    finite_or_zero,
    logit_diff_gradients,
)

# Share of the full projection in the first, the second and the later projections.
PROJECTION_SHARES = (1.0, 0.5, 0.3)


class MeasuredDistance(NamedTuple):
    """Distances of a batch of N images."""

    distance: Tensor  # (N,) in the norm of the attack, differentiable by the parameters
    clean: Tensor  # (N,) int64, class at the image
    flipped: Tensor  # (N,) bool, the class changed; with one_step: ``distance`` has a gradient
    iterations: Tensor  # (N,) int64, steps before the last linearisation


@dataclass(frozen=True)
class Perturbed:
    """Perturbations of N images that end near a boundary."""

    view: AttackView
    images: Tensor  # (N, C, H, W) fp32, without a graph
    labels: Tensor  # (N,) int64, class to leave, or to reach where ``toward_label``
    delta: Tensor  # (N, C, H, W), the perturbations
    toward_label: Tensor  # (N,) bool

    def split(self, size: int) -> "Iterator[tuple[Tensor, Perturbed]]":
        """Consecutive parts of at most ``size`` images, with their positions (A,) in the batch."""
        rows = torch.arange(len(self.images), device=self.images.device)
        columns = (rows, self.images, self.labels, self.delta, self.toward_label)
        for part_rows, *part in zip(*(column.split(size) for column in columns), strict=True):
            yield part_rows, Perturbed(self.view, *part)


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


def linearized_distance(
    perturbed: Perturbed,
    p: float,
    *,
    num_projections: int = 0,
    at_once: int | None = None,
    constants: LayerConstants | None = None,
) -> tuple[Tensor, Tensor]:
    """The distances (N,) to the linearised boundaries, and which of them (N,) bool exist.

    Where none exists, the distance is the norm of the perturbation, without a gradient.

    Args:
        perturbed: the images and their perturbations.
        p: the norm, in (1, inf].
        num_projections: projections towards the nearest boundary point before the last
            linearisation.
        at_once: largest number of images in the net at a time. Default: all.
        constants: of an earlier record of the layers, with the same parameters and buffers.
    """
    view, images = perturbed.view, perturbed.images
    size = at_once or len(images)
    record = None  # kept by the last linearisation, if that is one pass
    if size >= len(images) and view.can_record_layers(images):
        record = view.record_layers(constants)
    ends = [_end(part, rows, p, num_projections, record) for rows, part in perturbed.split(size)]
    # Backward passes come after masks for another batch may have been drawn.
    distance = _LinearizedDistance.apply(view.with_current_masks(), ends, *view.parameters())
    return distance, torch.cat([end.weight != 0 for end in ends])


def _end(
    perturbed: Perturbed, rows: Tensor, p: float, num_projections: int, record: LayerRecord | None
) -> _End:
    """Project some perturbations, at positions (A,) of the batch, and linearise at the end."""
    view, delta = perturbed.view, perturbed.delta

    def linearize(delta: Tensor) -> LinearizedBoundary:
        forward = view.forward_with_grad(perturbed.images + delta, rows)
        return linearize_boundary(view, forward, perturbed.labels, p, perturbed.toward_label)

    for number in range(num_projections):
        boundary = linearize(delta)
        share = torch.full_like(boundary.dual_norm, PROJECTION_SHARES[min(number, 2)])
        delta = project(delta, boundary, share, torch.zeros_like(share), p)
    with record or nullcontext():
        boundary = linearize(delta)
    distance = boundary.distance(delta)
    usable = boundary.dual_norm.isfinite() & (distance >= 0)
    return _End(
        rows=rows,
        points=perturbed.images + delta,
        source=boundary.source,
        target=boundary.target,
        distance=distance.where(usable, per_sample_norm(delta, p)),
        weight=-1.0 / boundary.dual_norm.where(usable, torch.inf),
        record=record,
    )


class _LinearizedDistance(torch.autograd.Function):
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
