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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.attack_state import Perturbation
from pipeline.attacks.norms import per_sample_norm
from pipeline.attacks.projection import (
    Classes,
    LinearizedBoundary,
    deciding_classes,
    linearize_boundary,
    project,
)
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.regularizer.trace import Gradients, add_gradients, target_logit_diff


@dataclass(frozen=True)
class _Ends:
    """The last linearisation of N samples."""

    view: AttackView
    points: Tensor  # (N, C, H, W)
    classes: Classes
    distance: Tensor  # (N,)
    weight: Tensor  # (N,) dd/df; zero without a gradient
    at_once: int
    forwards: list[ForwardPass]  # the graph at the points, if one forward pass holds all samples


def true_distance(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    perturbation: Perturbation,
    config: AttackConfig,
    at_once: int,
) -> Tensor:
    """The distance (N,) in the norm of the attack, differentiable by the parameters.

    Of a misclassified image it is the distance to the boundary of its label and one other class; if
    a third class lies between them, the label is farther away.

    Args:
        view: the net, with the dropout masks of the attack.
        images: (N, C, H, W).
        labels: (N,) class to leave, or to reach where the image is misclassified.
        perturbation: of DeepFool; samples that it has not flipped are moved on.
        config: norm and max_projections are used.
        at_once: largest number of images in the net at a time.
    """
    search = _Search(view, config, at_once, keep_graph=len(images) <= at_once)
    toward_label = perturbation.clean != labels
    rows = torch.arange(len(images), device=images.device).split(at_once)
    ends = [
        search.run(part, images[part], perturbation.delta[part], (labels[part], toward_label[part]))
        for part in rows
    ]
    joined = _Ends(
        view,
        torch.cat([end.points for end in ends]),
        Classes(*(torch.cat(column) for column in zip(*(e.classes for e in ends), strict=True))),
        torch.cat([end.distance for end in ends]),
        torch.cat([end.weight for end in ends]),
        at_once,
        [forward for end in ends for forward in end.forwards],
    )
    return _TrueDistance.apply(joined, *view.parameters())


@dataclass(frozen=True)
class _Search:
    """The projections, and the linearisation at their end."""

    view: AttackView
    config: AttackConfig
    at_once: int
    keep_graph: bool  # of the last forward pass, for the backward pass

    def run(
        self, rows: Tensor, images: Tensor, delta: Tensor, wanted: tuple[Tensor, Tensor]
    ) -> _Ends:
        """Project, and linearise at the end.

        Args:
            rows: (A,) int64, positions of the samples in the batch, for their dropout masks.
            images: (A, C, H, W).
            delta: (A, C, H, W) from which the projections start.
            wanted: (A,) labels, and (A,) bool, the samples that move toward their label.
        """
        p = float(self.config.norm)
        for number in range(self.config.max_projections):
            # Without a name for the forward pass, which frees its graph before the next is built.
            boundary = self._linearize(images + delta, rows, wanted)[2]
            share = torch.full_like(boundary.dual_norm, PROJECTION_SHARES[min(number, 2)])
            delta = project(delta, boundary, share, torch.zeros_like(share), p)
        points = images + delta
        forward, classes, boundary = self._linearize(points, rows, wanted)
        distance = boundary.distance(delta)
        usable = boundary.dual_norm.isfinite() & (distance > 0)
        return _Ends(
            view=self.view,
            points=points,
            classes=classes,
            distance=distance.where(usable, per_sample_norm(delta, p)),
            weight=-1.0 / boundary.dual_norm.where(usable, torch.inf),
            at_once=self.at_once,
            forwards=[forward] if self.keep_graph else [],
        )

    def _linearize(
        self, points: Tensor, rows: Tensor, wanted: tuple[Tensor, Tensor]
    ) -> tuple[ForwardPass, Classes, LinearizedBoundary]:
        forward = self.view.forward_with_grad(points, rows)
        classes = deciding_classes(forward.logits.detach(), *wanted)
        boundary = linearize_boundary(self.view, forward, classes, float(self.config.norm))
        return forward, classes, boundary


# Share of the full projection in the first, the second and the later projections.
PROJECTION_SHARES = (1.0, 0.5, 0.3)


class _TrueDistance(torch.autograd.Function):
    """Forward returns the distance; backward differentiates the boundary's shift."""

    @staticmethod
    def forward(ctx: Any, ends: _Ends, *_parameters: Tensor) -> Tensor:
        ctx.ends = ends
        return ends.distance.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        ends: _Ends = ctx.ends
        parameters = ends.view.parameters()
        weight = adjoint * ends.weight
        total: Gradients = [None] * len(parameters)
        for rows in torch.arange(len(weight), device=weight.device).split(ends.at_once):
            with torch.enable_grad():
                # The kept graph is used once, then freed.
                logits = (
                    ends.forwards.pop().logits
                    if ends.forwards
                    else ends.view(ends.points[rows], rows)
                )
                f = target_logit_diff(logits, ends.classes.target[rows], ends.classes.source[rows])
            terms = torch.autograd.grad(f, parameters, weight[rows], allow_unused=True)
            del logits, f
            total = add_gradients(total, terms)
        return None, *total
