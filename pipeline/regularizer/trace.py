"""The gradient of the perturbation with respect to the net's parameters, in two ways.

In: what DeepFool found, with its steps. Out: the perturbation, or its norm, as a differentiable
function of the parameters.

**Unrolled** is exact. The perturbation is a sum of steps r_i = |f| w / ||w||^2, each a function of
the parameters W directly and through the point z_i = x + r_0 + ... + r_{i-1} where it linearises.
Reverse mode takes one step at a time; with u the adjoint of the sum after step i,

    dL/dW += (dr_i/dW)^T u,        u <- u + (dr_i/dz)^T u        for i from the last to the first

Any net: each step is computed again with a graph, for the samples that took it only. A piecewise
linear net: there df = <w, dz> and dw = 0 along z, so that

    <u, dr_i> = a df + <v, dw>,    a = s <u, w> / ||w||^2,
                                   v = (|f| / ||w||^2) (u - 2 <u, w> w / ||w||^2)

(s the sign of f), and u passes as u + a w without touching the net. In another norm p, q dual to
it, with n = |w'|^(q-1) sign(w') and w' = w / ||w||_q, the step is r_i = |f| n / ||w||_q, and

    a = s <u, n> / ||w||_q,   v = (|f| / ||w||_q^2) ((q - 1) |w'|^(q-2) u - q <u, n> n).

What remains is the gradient of
a f(z) + <v, w(z)> = a f_held(z + v / a) with the activation pattern held as at z: one forward for
the pattern, one forward and backward, nothing of second order, steps of all iterations together.

**Boundary** differentiates the distance itself. With f(x + d n; W) = 0 along the unit direction n,
dd/dW = -(df/dW) / ||w|| by the implicit function theorem, ||w|| held constant (that of the last
step): one forward and backward at the boundary point. Where the attack linearises at the points
that it tested, the last test's graph is that forward.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.deepfool import Perturbation, Step
from pipeline.attacks.linearized_step import logit_differences, loss_step
from pipeline.attacks.norms import (
    dual_exponent,
    expand_to_images,
    per_sample_norm,
    signed_power,
    steepest_step,
)
from pipeline.config import AttackConfig
from pipeline.errors import UserError, first_line
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.models.fixed_dropout import DropoutMasks
from pipeline.models.linear_region import FixedActivationPattern, RecordActivationPattern

Gradients = list[Tensor | None]


class AttackTrace(NamedTuple):
    """What a backward pass needs of the sweep."""

    view: AttackView
    images: Tensor  # (N, C, H, W) fp32, as DeepFool had them, without a graph
    perturbation: Perturbation  # with its steps
    config: AttackConfig  # what DeepFool was given
    at_once: int  # largest number of images in the net at a time
    masks: DropoutMasks | None  # of dropout

    def steps(self) -> Iterator[tuple[Step, Tensor]]:
        """Each step with the points where it linearised, from the last to the first; each is let
        go as it is taken, so that the next graph finds its memory free."""
        reached = self.perturbation.delta / (1.0 + self.config.overshoot)
        while self.perturbation.steps:
            step = self.perturbation.steps.pop()
            start = reached[step.samples] - step.displacement
            reached[step.samples] = start / self.config.reach
            yield step, self.images[step.samples] + start

    def crossings(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples, some at a time, and their logits at the boundary, with a graph: first those
        whose graph was kept, which is let go."""
        left = torch.ones_like(self.perturbation.flipped)
        while self.perturbation.boundary_passes:
            graph, rows, samples = self.perturbation.boundary_passes.pop()
            left[samples] = False
            with torch.enable_grad():
                logits = graph.logits[rows]
            del graph
            yield samples, logits
        # Where the kept graphs are, or without the overshoot.
        scale = self.config.reach / (1.0 + self.config.overshoot)
        for samples in left.nonzero().squeeze(1).split(self.at_once):
            points = torch.add(self.images[samples], self.perturbation.delta[samples], alpha=scale)
            with torch.enable_grad():
                logits = self.view(points, samples)
            yield samples, logits


def unrolled(replay: AttackTrace) -> Tensor:
    """The perturbation (N, C, H, W), exactly differentiable."""
    view, images = replay.view, replay.images
    # Low precision would round away the shift v / a, which is small beside z.
    tf32 = images.is_cuda and torch.backends.cudnn.allow_tf32
    full = view.precision == torch.float32 and not tf32
    simple = replay.config.step_direction == "boundary" and replay.config.norm < torch.inf
    fast = full and simple and view.is_piecewise_linear(images)
    return _Unrolled.apply(replay, fast, *view.parameters())


def boundary(replay: AttackTrace) -> Tensor:
    """The perturbation's norm (N,), differentiable at the boundary point."""
    return _Boundary.apply(replay, *replay.view.parameters())


class _Unrolled(torch.autograd.Function):
    """Forward gives the perturbation as it is; backward unrolls the steps that made it."""

    @staticmethod
    def forward(ctx: Any, replay: AttackTrace, fast: bool, *parameters: Tensor) -> Tensor:
        ctx.replay, ctx.fast, ctx.used = replay, fast, False
        return replay.perturbation.delta.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Any, ...]:
        if ctx.used:
            raise RuntimeError("the regulariser's steps are freed by the first backward pass")
        ctx.used = True
        view, masks = ctx.replay.view, ctx.replay.view.masks
        view.masks = ctx.replay.masks
        try:
            reverse = _through_pieces if ctx.fast else _through_steps
            total = reverse(ctx.replay, (1.0 + ctx.replay.config.overshoot) * adjoint)
        finally:
            view.masks = masks
        return None, None, *total


def _through_steps(replay: AttackTrace, adjoint: Tensor) -> Gradients:
    """Any net: one step at a time, by a second derivative."""
    total: Gradients = [None] * len(replay.view.parameters())
    for step, points in replay.steps():
        more = step.iteration > 0
        gradients = _differentiate(replay, points, step, adjoint[step.samples], more)
        total = _add(total, gradients)
        if more and gradients[-1] is not None:
            passed = adjoint[step.samples] + gradients[-1]
            adjoint[step.samples] = passed.mul_(replay.config.reach)
        del gradients  # before the next step's graph is built
    return total


def _differentiate(
    replay: AttackTrace, points: Tensor, step: Step, adjoint: Tensor, through_points: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of <adjoint, step> with respect to the parameters, and then to the points."""
    view = replay.view
    try:
        with torch.enable_grad():
            graph = view.forward_with_grad(points, step.samples)
            moved = _moved(replay, graph, step)
        wanted = [*view.parameters(), graph.inputs] if through_points else view.parameters()
        return torch.autograd.grad(moved, wanted, adjoint, allow_unused=True)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise UserError(
            f"the net has a layer without a second derivative ({first_line(error)}), "
            "which the regulariser needs; replace it by simpler operations, or use "
            "regularizer.gradient boundary"
        ) from None


def _moved(replay: AttackTrace, graph: ForwardPass, step: Step) -> Tensor:
    """A step of the sweep once more, with a graph."""
    view, config = replay.view, replay.config
    if config.step_direction == "loss_gradient":
        ends = step.source, step.target, step.toward_label
        return loss_step(view, graph, None, *ends, config.norm, create_graph=True).displacement
    gap = _gap(graph.logits, step.target, step.source)
    w = view.logit_diff_gradient(graph, gap, create_graph=True)
    norm = per_sample_norm(w, dual_exponent(config.norm))
    norm = norm.where(norm > 0, torch.inf)
    # Not |f| w / ||w||^2 as written: the square of a small norm leaves fp32's range.
    return steepest_step(
        w / expand_to_images(norm), torch.ones_like(norm), gap.abs() / norm, config.norm
    )


class _Piece(NamedTuple):
    """a f(z) + <v, w(z)> of some samples, as a f_held(z + shift)."""

    samples: Tensor  # positions in the batch
    points: Tensor
    shift: Tensor  # v / a
    weight: Tensor  # a
    target: Tensor
    source: Tensor


def _through_pieces(replay: AttackTrace, adjoint: Tensor) -> Gradients:
    """A piecewise linear net: no second derivatives, steps of several iterations together."""
    view, p = replay.view, replay.config.norm
    q = dual_exponent(p)
    total: Gradients = [None] * len(view.parameters())
    waiting: list[_Piece] = []
    for step, points in replay.steps():
        # However many iterations there were.
        if sum(len(piece.points) for piece in waiting) + len(points) > replay.at_once:
            total = _add(total, _held_gradients(view, waiting))
            waiting = []
        u = adjoint[step.samples]
        length = per_sample_norm(step.displacement, p)  # |f| / ||w||_q
        # The step's direction n.
        unit = step.displacement / expand_to_images(length.where(length > 0, torch.inf))
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
    return _add(total, _held_gradients(view, waiting)) if waiting else total


def _held_gradients(view: AttackView, pieces: list[_Piece]) -> Gradients:
    piece = _Piece(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
    pieces.clear()
    with torch.no_grad(), RecordActivationPattern() as record:
        view(piece.points, piece.samples)
    with torch.enable_grad():
        with FixedActivationPattern(record.pattern):
            logits = view(piece.points + piece.shift, piece.samples)
        gap = _gap(logits, piece.target, piece.source)
    return list(torch.autograd.grad(gap, view.parameters(), piece.weight, allow_unused=True))


class _Boundary(torch.autograd.Function):
    """Forward gives the norm as it is; backward is the boundary's shift under the parameters."""

    @staticmethod
    def forward(ctx: Any, replay: AttackTrace, *parameters: Tensor) -> Tensor:
        ctx.replay = replay
        return per_sample_norm(replay.perturbation.delta, replay.config.norm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Any, ...]:
        replay: AttackTrace = ctx.replay
        found = replay.perturbation
        target, source = torch.zeros_like(found.iterations), torch.zeros_like(found.iterations)
        norm = torch.full_like(adjoint, torch.inf)
        for step in found.steps:  # the last step of each sample is what stays
            target[step.samples], source[step.samples] = step.target, step.source
            norm[step.samples] = step.gradient_norm
        weight = -(1.0 + replay.config.overshoot) * adjoint / norm
        parameters = replay.view.parameters()
        total: Gradients = [None] * len(parameters)
        for samples, logits in replay.crossings():
            with torch.enable_grad():
                gap = _gap(logits, target[samples], source[samples])
            terms = torch.autograd.grad(gap, parameters, weight[samples], allow_unused=True)
            total = _add(total, terms)
        return None, *total


def _gap(logits: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Logit of the target minus that of the source, (A,)."""
    return logit_differences(logits, source, target[:, None])[:, 0]


def _add(total: Gradients, terms: Any) -> Gradients:
    """Sums, in place of the first; ``terms`` may have more entries."""
    return [
        (a if b is None else b) if a is None or b is None else a.add_(b)
        for a, b in zip(total, terms, strict=False)
    ]
