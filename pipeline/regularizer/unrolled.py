"""The perturbation's exact gradient: every step of the attack, unrolled.

In: a recorded attack. Out: the perturbation as a differentiable function of the parameters W.

f is the logit of the target minus that of the source, w its gradient by the image, r a step.
The perturbation is a sum of steps r_i = |f| w / ||w||^2, each a function of W directly and through
the point z_i = x + r_0 + ... + r_{i-1} where it linearises. Reverse mode takes one step at a time;
with u the adjoint of the sum after step i,

    dL/dW += (dr_i/dW)^T u,        u <- u + (dr_i/dz)^T u        for i from the last to the first

Any net: each step is computed again with a graph, for the samples that took it only. A piecewise
linear net: see `pipeline.regularizer.piecewise_linear`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.deepfool import Step
from pipeline.attacks.linearized_step import loss_step
from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, steepest_step
from pipeline.errors import UserError, first_line
from pipeline.models.attack_view import ForwardPass
from pipeline.regularizer.piecewise_linear import through_pieces
from pipeline.regularizer.trace import AttackTrace, Gradients, add, gap_of


def unrolled(replay: AttackTrace) -> Tensor:
    """The perturbation (N, C, H, W), exactly differentiable."""
    view, images = replay.view, replay.images
    # Low precision would round away the shift v / a, which is small beside z.
    tf32 = images.is_cuda and torch.backends.cudnn.allow_tf32
    full = view.precision == torch.float32 and not tf32
    simple = replay.config.direction == "normal" and float(replay.config.norm) < torch.inf
    fast = full and simple and view.is_piecewise_linear(images)
    return _Unrolled.apply(replay, fast, *view.parameters())


class _Unrolled(torch.autograd.Function):
    """Forward gives the perturbation as it is; backward unrolls the steps that made it."""

    @staticmethod
    def forward(ctx: Any, replay: AttackTrace, fast: bool, *parameters: Tensor) -> Tensor:
        ctx.replay, ctx.fast, ctx.used = replay, fast, False
        return replay.perturbation.delta.detach()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        if ctx.used:
            raise RuntimeError("the regulariser's steps are freed by the first backward pass")
        ctx.used = True
        view, masks = ctx.replay.view, ctx.replay.view.masks
        view.masks = ctx.replay.masks
        try:
            reverse = through_pieces if ctx.fast else _through_steps
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
        total = add(total, gradients)
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
    if config.direction == "loss":
        ends = step.source, step.target, step.toward_label
        return loss_step(
            view, graph, None, *ends, float(config.norm), create_graph=True
        ).displacement
    gap = gap_of(graph.logits, step.target, step.source)
    w = view.logit_diff_gradient(graph, gap, create_graph=True)
    norm = per_sample_norm(w, dual_exponent(float(config.norm)))
    norm = norm.where(norm > 0, torch.inf)
    # Not |f| w / ||w||^2 as written: the square of a small norm leaves fp32's range.
    return steepest_step(
        w / expand_to_images(norm), torch.ones_like(norm), gap.abs() / norm, float(config.norm)
    )
