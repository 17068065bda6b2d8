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

What remains is the gradient of a f(z) + <v, w(z)> by the parameters, of all steps together, without
a second derivative. In full precision it is that of a f_held(z + v / a), where f_held has the
activation pattern of z: one forward for the pattern and one forward and backward. In reduced
precision v / a would be rounded off beside z. There v enters as a tangent of the forward pass, and
the gradients by the layers' outputs, which are those of f, serve both terms
(`pipeline.models.layer_record`): as many FLOPs, more memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pipeline.attacks.attack_state import Step
from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, signed_power
from pipeline.models.attack_view import AttackView
from pipeline.models.layer_record import tangents_allowed
from pipeline.models.linear_region import FixedActivationPattern, RecordActivationPattern
from pipeline.models.parameter_gradients import Gradients, add_gradients
from pipeline.models.recorded_layers import LayerConstants
from pipeline.regularizer.trace import AttackTrace, target_logit_diff


class _Terms(NamedTuple):
    """a f(z) + <v, w(z)> of A samples, to be differentiated by the parameters."""

    samples: Tensor  # (A,) int64, positions in the batch
    points: Tensor  # (A, C, H, W) z
    weight: Tensor  # (A,) a
    direction: Tensor  # (A, C, H, W) v
    target: Tensor  # (A,) int64, class
    source: Tensor  # (A,) int64, class

    @classmethod
    def concatenate(cls, parts: "list[_Terms]") -> "_Terms":
        """Concatenate the terms of several steps."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


def backward_piecewise_linear(trace: AttackTrace, adjoint: Tensor) -> Gradients:
    """Gradients by the parameters of a piecewise linear net; the adjoint is overwritten."""
    view, p = trace.view, float(trace.config.norm)
    total: Gradients = [None] * len(view.parameters())
    waiting: list[_Terms] = []
    constants = LayerConstants()
    for step, points in trace.steps():
        # Chunk by images, whichever iterations they come from.
        if sum(len(part.points) for part in waiting) + len(points) > trace.at_once:
            total = add_gradients(total, _gradients(view, waiting, constants))
            waiting = []
        u = adjoint[step.samples]
        part, propagated_adjoint = _linearize(step, points, u, p)
        if not trace.through_earlier_steps:
            propagated_adjoint = u
        adjoint[step.samples] = propagated_adjoint.mul_(trace.config.reach)
        waiting.append(part)
        del u, propagated_adjoint  # as large as the batch
    return add_gradients(total, _gradients(view, waiting, constants)) if waiting else total


def _linearize(step: Step, points: Tensor, u: Tensor, p: float) -> tuple[_Terms, Tensor]:
    """The terms a f(z) + <v, w(z)> of a step, and the adjoint u + a w before it."""
    q = dual_exponent(p)
    length = per_sample_norm(step.displacement, p)  # |f| / ||w||_q
    n = step.displacement / expand_to_images(length.where(length > 0, torch.inf))
    u_along_n = (u * n).flatten(1).sum(dim=1)  # <u, n>
    w, scaled_adjoint = n, u  # w', and (q - 1) |w'|^(q - 2) u
    if p != 2.0:
        w = signed_power(n, p - 1.0)
        scaled_adjoint = (q - 1.0) * u * signed_power(n, 2.0 - p).abs()
    signed = step.logit_diff.sign() * u_along_n
    propagated_adjoint = u + expand_to_images(signed) * w
    weight = signed / step.gradient_norm
    v = expand_to_images(length / step.gradient_norm) * (
        scaled_adjoint - q * expand_to_images(u_along_n) * n
    )
    terms = _Terms(step.samples, points, weight, v, step.target, step.source)
    return terms, propagated_adjoint


def _gradients(view: AttackView, parts: list[_Terms], constants: LayerConstants) -> Gradients:
    """Gradients of the sum of a f(z) + <v, w(z)> by the parameters; empties the list."""
    terms = _Terms.concatenate(parts)
    parts.clear()
    if is_full_precision(view, terms.points):
        return _gradients_by_shift(view, terms)
    return _gradients_by_tangents(view, terms, constants)


def is_full_precision(view: AttackView, images: Tensor) -> bool:
    """Whether the net computes in at least fp32."""
    tf32 = images.is_cuda and torch.backends.cudnn.allow_tf32
    return view.precision == torch.float32 and not tf32


def _norm_or_one(points: Tensor) -> Tensor:
    """The norms (A,) of points; 1 for a point of zeros."""
    norm = per_sample_norm(points)
    return norm.where(norm > 0, 1.0)


def _gradients_by_shift(view: AttackView, terms: _Terms) -> Gradients:
    """As gradients of a f_held(z + v / a)."""
    # A larger weight than a instead of one that is far below v's share: v / a would lose digits.
    smallest = 1e-6 * per_sample_norm(terms.direction) / _norm_or_one(terms.points)
    weight = torch.where(terms.weight.abs() < smallest, smallest, terms.weight)
    shift = terms.direction / expand_to_images(weight.where(weight != 0, torch.inf))
    with torch.no_grad(), RecordActivationPattern() as record:
        view(terms.points, terms.samples)
    with torch.enable_grad():
        with FixedActivationPattern(record.pattern):
            logits = view(terms.points + shift, terms.samples)
        f = target_logit_diff(logits, terms.target, terms.source)
    return list(torch.autograd.grad(f, view.parameters(), weight, allow_unused=True))


def _gradients_by_tangents(view: AttackView, terms: _Terms, constants: LayerConstants) -> Gradients:
    """From a record of the layers, with v as a tangent."""
    # Tangents are somewhat shorter than the points, whose range fits: they grow more in the net.
    size = 256.0 * per_sample_norm(terms.direction) / _norm_or_one(terms.points)
    tangents = terms.direction / expand_to_images(size.where(size > 0, torch.inf))
    record = view.record_layers(constants)
    with torch.enable_grad():
        points = terms.points.requires_grad_()
        with tangents_allowed(), record:
            logits = view(forward_ad.make_dual(points, tangents), terms.samples)
            logits = forward_ad.unpack_dual(logits).primal
        f = target_logit_diff(logits, terms.target, terms.source)
    scale = view.gradient_scale
    torch.autograd.grad(f, points, torch.full_like(f, scale))
    return record.gradients(terms.weight / scale, size / scale)
