"""The perturbation's exact gradient in a piecewise linear net: no second derivatives.

In: a recorded attack and the adjoint u of its perturbation. Out: gradients by the parameters.

f is the logit of the target class minus that of the source class, w its gradient by the image, z
the point where step r_i linearises, s the sign of f. In such a net df = <w, dz> and dw = 0 along z,
so that

    <u, dr_i> = a df + <v, dw>,    a = s <u, w> / ||w||^2,
                                   v = (|f| / ||w||^2) (u - 2 <u, w> w / ||w||^2),

and u becomes u + a w without a pass through the net. In another norm p, with q dual to it,
w' = w / ||w||_q and n = |w'|^(q-1) sign(w'), the step is r_i = |f| n / ||w||_q, and

    a = s <u, n> / ||w||_q,   v = (|f| / ||w||_q^2) ((q - 1) |w'|^(q-2) u - q <u, n> n).

What remains is the gradient of a f(z) + <v, w(z)> = a f_held(z + v / a), where f_held has the
activation pattern of z: one forward for the pattern and one forward and backward, nothing of second
order, steps of all iterations together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.attack_state import Step
from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, signed_power
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import FixedActivationPattern, RecordActivationPattern
from pipeline.regularizer.trace import AttackTrace, Gradients, add_gradients, target_logit_diff


class _ShiftedForward(NamedTuple):
    """a f(z) + <v, w(z)> of A samples, to be computed as a f_held(z + v / a)."""

    samples: Tensor  # (A,) int64, positions in the batch
    points: Tensor  # (A, C, H, W) z
    shift: Tensor  # (A, C, H, W) v / a
    weight: Tensor  # (A,) a
    target: Tensor  # (A,) int64, class
    source: Tensor  # (A,) int64, class

    @classmethod
    def concatenate(cls, parts: "list[_ShiftedForward]") -> "_ShiftedForward":
        """Concatenate the forward passes of several steps."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


def backward_piecewise_linear(trace: AttackTrace, adjoint: Tensor) -> Gradients:
    """Gradients by the parameters of a piecewise linear net; the adjoint is overwritten."""
    view, p = trace.view, float(trace.config.norm)
    total: Gradients = [None] * len(view.parameters())
    waiting: list[_ShiftedForward] = []
    for step, points in trace.steps():
        # Chunk by images, whichever iterations they come from.
        if sum(len(part.points) for part in waiting) + len(points) > trace.at_once:
            total = add_gradients(total, _gradients(view, waiting))
            waiting = []
        part, propagated_adjoint = _linearize(step, points, adjoint[step.samples], p)
        adjoint[step.samples] = propagated_adjoint.mul_(trace.config.reach)
        waiting.append(part)
        del propagated_adjoint  # as large as the batch
    return add_gradients(total, _gradients(view, waiting)) if waiting else total


def _linearize(step: Step, points: Tensor, u: Tensor, p: float) -> tuple[_ShiftedForward, Tensor]:
    """The terms a f(z) + <v, w(z)> of a step, and the adjoint u + a w before it."""
    q = dual_exponent(p)
    length = per_sample_norm(step.displacement, p)  # |f| / ||w||_q
    n = step.displacement / expand_to_images(length.where(length > 0, torch.inf))
    u_along_n = (u * n).flatten(1).sum(dim=1)  # <u, n>
    w, scaled_adjoint = n, u  # w', and (q - 1) |w'|^(q - 2) u
    if p != 2.0:
        w = signed_power(n, p - 1.0)
        scaled_adjoint = (q - 1.0) * u * signed_power(n, 2.0 - p).abs()
    propagated_adjoint = u + expand_to_images(step.logit_diff.sign() * u_along_n) * w
    weight = step.logit_diff.sign() * u_along_n / step.gradient_norm
    v = expand_to_images(length / step.gradient_norm) * (
        scaled_adjoint - q * expand_to_images(u_along_n) * n
    )
    # A larger weight than a instead of one that is far below v's share: v / a would lose digits.
    smallest = 1e-6 * per_sample_norm(v) / per_sample_norm(points)
    weight = torch.where(weight.abs() < smallest, smallest, weight)
    shift = v / expand_to_images(weight.where(weight != 0, torch.inf))
    shifted = _ShiftedForward(step.samples, points, shift, weight, step.target, step.source)
    return shifted, propagated_adjoint


def _gradients(view: AttackView, parts: list[_ShiftedForward]) -> Gradients:
    """Gradients of the sum of a f_held(z + v / a) by the parameters; empties the list."""
    shifted = _ShiftedForward.concatenate(parts)
    parts.clear()
    with torch.no_grad(), RecordActivationPattern() as record:
        view(shifted.points, shifted.samples)
    with torch.enable_grad():
        with FixedActivationPattern(record.pattern):
            logits = view(shifted.points + shifted.shift, shifted.samples)
        f = target_logit_diff(logits, shifted.target, shifted.source)
    return list(torch.autograd.grad(f, view.parameters(), shifted.weight, allow_unused=True))
