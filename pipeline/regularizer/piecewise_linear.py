"""The perturbation's exact gradient in a piecewise linear net: no second derivatives.

In: a recorded attack and the adjoint u of its perturbation. Out: gradients by the parameters.

f is the logit of the target minus that of the source, w its gradient by the image, z the point
where step r_i linearises. In such a net df = <w, dz> and dw = 0
along z, so that

    <u, dr_i> = a df + <v, dw>,    a = s <u, w> / ||w||^2,
                                   v = (|f| / ||w||^2) (u - 2 <u, w> w / ||w||^2)

(s the sign of f), and u passes as u + a w without touching the net. In another norm p, q dual to
it, with n = |w'|^(q-1) sign(w') and w' = w / ||w||_q, the step is r_i = |f| n / ||w||_q, and

    a = s <u, n> / ||w||_q,   v = (|f| / ||w||_q^2) ((q - 1) |w'|^(q-2) u - q <u, n> n).

What remains is the gradient of
a f(z) + <v, w(z)> = a f_held(z + v / a) with the activation pattern held as at z: one forward for
the pattern, one forward and backward, nothing of second order, steps of all iterations together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, signed_power
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import FixedActivationPattern, RecordActivationPattern
from pipeline.regularizer.trace import AttackTrace, Gradients, add, gap_of


class _Piece(NamedTuple):
    """a f(z) + <v, w(z)> of some samples, as a f_held(z + shift)."""

    samples: Tensor  # positions in the batch
    points: Tensor
    shift: Tensor  # v / a
    weight: Tensor  # a
    target: Tensor
    source: Tensor


def through_pieces(replay: AttackTrace, adjoint: Tensor) -> Gradients:
    """A piecewise linear net: no second derivatives, steps of several iterations together."""
    view, p = replay.view, float(replay.config.norm)
    q = dual_exponent(p)
    total: Gradients = [None] * len(view.parameters())
    waiting: list[_Piece] = []
    for step, points in replay.steps():
        # However many iterations there were.
        if sum(len(piece.points) for piece in waiting) + len(points) > replay.at_once:
            total = add(total, _held_gradients(view, waiting))
            waiting = []
        u = adjoint[step.samples]
        length = per_sample_norm(step.displacement, p)  # |f| / ||w||_q
        unit = step.displacement / expand_to_images(
            length.where(length > 0, torch.inf)
        )  # the step's direction n
        along = (u * unit).flatten(1).sum(dim=1)  # <u, n>
        w, bent = unit, u  # w / ||w||_q, and u times (q - 1) |w / ||w||_q|^(q - 2)
        if p != 2.0:
            w = signed_power(unit, p - 1.0)
            bent = (q - 1.0) * u * signed_power(unit, 2.0 - p).abs()
        passed = u + expand_to_images(step.logit_diff.sign() * along) * w
        adjoint[step.samples] = passed.mul_(replay.config.reach)
        weight = step.logit_diff.sign() * along / step.gradient_norm
        v = expand_to_images(length / step.gradient_norm) * (
            bent - q * expand_to_images(along) * unit
        )
        # A weight far below v's share would only lose digits: it is kept from vanishing.
        least = 1e-6 * per_sample_norm(v) / per_sample_norm(points)
        weight = torch.where(weight.abs() < least, least, weight)
        shift = v / expand_to_images(weight.where(weight != 0, torch.inf))
        waiting.append(_Piece(step.samples, points, shift, weight, step.target, step.source))
        del u, w, bent, unit, passed, v, shift  # each as large as the batch
    return add(total, _held_gradients(view, waiting)) if waiting else total


def _held_gradients(view: AttackView, pieces: list[_Piece]) -> Gradients:
    piece = _Piece(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
    pieces.clear()
    with torch.no_grad(), RecordActivationPattern() as record:
        view(piece.points, piece.samples)
    with torch.enable_grad():
        with FixedActivationPattern(record.pattern):
            logits = view(piece.points + piece.shift, piece.samples)
        gap = gap_of(logits, piece.target, piece.source)
    return list(torch.autograd.grad(gap, view.parameters(), piece.weight, allow_unused=True))
