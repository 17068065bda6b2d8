"""Steps towards the nearest point of a class boundary that has been reached.

In: a perturbation r whose end is near a boundary. Out: a shorter one, near the same boundary or a
nearer one. At a smallest perturbation r is parallel to the boundary's normal w (SuperDeepFool,
Abdolpourrostam, Abroshan, Moosavi-Dezfooli, NeurIPS 2024). A step linearises once and combines two
points of the linearised boundary <w, r'> = <w, r> - f: the nearest to x + r, which DeepFool would
take, and the nearest to x, whose perturbation is parallel to w (as in FAB, Croce, Hein, ICML 2020).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.linearized_step import logit_differences, other_logits
from pipeline.attacks.norms import (
    dual_exponent,
    expand_to_images,
    per_sample_dot,
    per_sample_norm,
    steepest_step,
)
from pipeline.models.attack_view import AttackView, ForwardPass


class LinearizedBoundary(NamedTuple):
    """The boundary between two classes, linearised at A points.

    f is the logit of the target class minus that of the source class.
    """

    gradient: Tensor  # (A, C, H, W), w, the gradient of f by the image
    dual_norm: Tensor  # (A,) ||w||_q; infinite where w is zero, or w or f is not finite
    logit_diff: Tensor  # (A,) f; positive where the class is the wanted one
    source: Tensor  # (A,) int64
    target: Tensor  # (A,) int64

    def distance(self, delta: Tensor) -> Tensor:
        """||r'||_p (A,) of the shortest r' with <w, r'> = <w, r> - f, for r = delta (A, C, H, W).

        Where delta ends at the nearest boundary point, this is the distance to the boundary.
        """
        along = per_sample_dot(self.gradient, delta)
        return (along - self.logit_diff) / self.dual_norm

    def cosine(self, delta: Tensor, p: float, limited: Tensor | None = None) -> Tensor:
        """<w, r> / (||w||_q ||r||_p), (A,): 1 at a smallest perturbation (Hoelder's inequality).

        Args:
            delta: r, (A, C, H, W).
            p: the norm.
            limited: (A, C, H, W) bool, values that cannot follow w (`at_bounds`); they are left
                out, as the smallest perturbation within bounds is parallel to w in the others only.
        """
        if limited is None:
            along = per_sample_dot(self.gradient, delta)
            return along / (self.dual_norm * per_sample_norm(delta, p))
        gradient, delta = self.gradient.masked_fill(limited, 0.0), delta.masked_fill(limited, 0.0)
        norms = per_sample_norm(gradient, dual_exponent(p)) * per_sample_norm(delta, p)
        return per_sample_dot(gradient, delta) / norms.where(norms > 0, torch.inf)


def at_bounds(view: AttackView, points: Tensor, gradient: Tensor) -> Tensor | None:
    """The values of ``points`` (A, C, H, W) at a bound that the gradient points beyond, bool; None
    without bounds."""
    if view.bounds is None:
        return None
    low, high = view.bounds
    return ((points <= low) & (gradient < 0)) | ((points >= high) & (gradient > 0))


def linearize_boundary(
    view: AttackView,
    forward: ForwardPass,
    label: Tensor,
    p: float,
    toward_label: Tensor | None = None,
) -> LinearizedBoundary:
    """Linearise the boundary between the label and the highest other class.

    Args:
        view: the net.
        forward: the points (A, C, H, W); its graph is kept.
        label: (A,) class to leave, or to reach where ``toward_label``.
        p: norm of the perturbation, in (1, inf].
        toward_label: (A,) bool. Default: no sample.
    """
    other = other_logits(forward.logits.detach(), label).argmax(dim=1)
    source, target = label, other
    if toward_label is not None:
        source, target = other.where(toward_label, label), label.where(toward_label, other)
    with torch.enable_grad():
        logit_diff = logit_differences(forward.logits, source, target[:, None])[:, 0]
    gradient = view.logit_diff_gradient(forward, logit_diff)
    norm = per_sample_norm(gradient, dual_exponent(p))
    usable = norm.isfinite() & (norm > 0) & logit_diff.detach().isfinite()
    return LinearizedBoundary(
        gradient.masked_fill(~expand_to_images(usable), 0.0),
        norm.where(usable, torch.inf),
        logit_diff.detach(),
        source,
        target,
    )


def project(
    delta: Tensor, boundary: LinearizedBoundary, share: Tensor, overshoot: Tensor, p: float
) -> Tensor:
    """The next perturbation (A, C, H, W); ``delta`` where there is no gradient.

    Args:
        delta: (A, C, H, W), where ``boundary`` is linearised.
        boundary: the linearised boundary.
        share: (A,) weight of the point that is nearest to the image, in [0, 1]; the other point,
            nearest to the end of ``delta``, has the rest. 1 is the full projection, which often
            jumps past the linear region in which w is valid.
        overshoot: (A,) how far beyond the boundary to go, relative to ||delta||. Without it the
            steps approach a curved boundary from inside and never cross it.
        p: norm of the perturbation, in (1, inf].
    """
    gradient, dual_norm = boundary.gradient, boundary.dual_norm
    along = per_sample_dot(gradient, delta) / dual_norm
    length = boundary.distance(delta) + overshoot * per_sample_norm(delta, p)
    length = length.where(dual_norm.isfinite(), 0.0)
    nearest_to_image = steepest_step(gradient, dual_norm, length, p)
    correction = steepest_step(gradient, dual_norm, length - along, p)
    share = expand_to_images(share.where(dual_norm.isfinite(), 0.0))
    return (delta + correction).mul_(1.0 - share).add_(share * nearest_to_image)
