"""The perturbation's exact gradient: every step of the attack, unrolled.

In: a recorded attack. Out: the perturbation as a differentiable function of the parameters W.

f is the logit of the target class minus that of the source class, w its gradient by the image, r_i
the step of iteration i, u the gradient of the loss L by the sum of the steps after step i (the
adjoint). The perturbation is a sum of steps r_i = |f| w / ||w||^2. Each is a function of W directly
and through the point z_i = x + r_0 + ... + r_{i-1} where it linearises. Reverse mode takes one step
at a time:

    dL/dW += (dr_i/dW)^T u,        u <- u + (dr_i/dz)^T u        for i from the last to the first

For any net, each step is computed again with a graph, only for the samples that took it. For a
piecewise linear net see `pipeline.regularizer.piecewise_linear`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.attack_state import Step
from pipeline.attacks.linearized_step import Candidates
from pipeline.attacks.loss_step import loss_step
from pipeline.attacks.norms import dual_exponent, expand_to_images, per_sample_norm, steepest_step
from pipeline.config import AttackConfig
from pipeline.errors import UserError, first_line
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.models.parameter_gradients import Gradients, add_gradients
from pipeline.regularizer.piecewise_linear import (
    backward_piecewise_linear,
    is_full_precision,
)
from pipeline.regularizer.trace import (
    AttackTrace,
    finite_or_zero,
    scaled_gradients,
    target_logit_diff,
)


def unrolled(trace: AttackTrace) -> Tensor:
    """The perturbation (N, C, H, W), differentiable by the parameters, exactly."""
    has_formula = is_piecewise_linear_attack(trace.view, trace.images, trace.config)
    return _Unrolled.apply(trace, has_formula, *trace.view.parameters())


def is_piecewise_linear_attack(view: AttackView, images: Tensor, config: AttackConfig) -> bool:
    """Whether `pipeline.regularizer.piecewise_linear` differentiates the steps; if not, second
    derivatives do. The net is tried with the first of the images (N, C, H, W)."""
    has_formula = config.step_direction == "boundary" and float(config.norm) < torch.inf
    return (
        has_formula
        and view.is_piecewise_linear(images)
        and (is_full_precision(view, images) or view.can_record_layers(images))
    )


class _Unrolled(torch.autograd.Function):
    """Forward returns the perturbation; backward differentiates the steps that made it."""

    @staticmethod
    def forward(
        ctx: Any,
        trace: AttackTrace,
        piecewise_linear: bool,
        *_parameters: Tensor,
    ) -> Tensor:
        ctx.trace, ctx.piecewise_linear, ctx.used = trace, piecewise_linear, False
        return trace.perturbation.delta.detach()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        if ctx.used:
            raise RuntimeError("the regulariser's steps are freed by the first backward pass")
        ctx.used = True
        adjoint = (1.0 + ctx.trace.config.overshoot) * adjoint
        backward = backward_piecewise_linear
        if not ctx.piecewise_linear:
            backward = _backward_by_recomputation
        return None, None, *finite_or_zero(ctx.trace.view, backward(ctx.trace, adjoint))


def _backward_by_recomputation(trace: AttackTrace, adjoint: Tensor) -> Gradients:
    """Gradients by the parameters, for any net: one step at a time, by a second derivative."""
    total: Gradients = [None] * len(trace.view.parameters())
    for step, points in trace.steps():
        needs_input_grad = step.iteration > 0 and trace.through_earlier_steps
        gradients = _differentiate(trace, points, step, adjoint[step.samples], needs_input_grad)
        total = add_gradients(total, gradients)
        propagated_adjoint = adjoint[step.samples]
        if needs_input_grad and gradients[-1] is not None:
            propagated_adjoint = propagated_adjoint + gradients[-1]
        adjoint[step.samples] = propagated_adjoint.mul_(trace.config.reach)
        del gradients  # before the next step's graph is built
    return total


def _differentiate(
    trace: AttackTrace, points: Tensor, step: Step, adjoint: Tensor, needs_input_grad: bool
) -> Sequence[Tensor | None]:
    """Gradients of <adjoint, step> by the parameters and, with ``needs_input_grad``, last by the
    points."""
    view = trace.view
    try:
        with torch.enable_grad():
            forward = view.forward_with_grad(points, step.samples)
            displacement = _displacement(trace, forward, step)
        inputs: list[Tensor] = list(view.parameters())
        if needs_input_grad:
            inputs.append(forward.inputs)
        return scaled_gradients(view, displacement, inputs, adjoint)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise UserError(
            f"the net has a layer without a second derivative ({first_line(error)}), "
            "which the regulariser needs; replace it by simpler operations, or use "
            "regularizer.gradient boundary"
        ) from None


def _displacement(trace: AttackTrace, forward: ForwardPass, step: Step) -> Tensor:
    """The step (A, C, H, W), computed again with a graph."""
    view, p = trace.view, float(trace.config.norm)
    if trace.config.step_direction == "loss_gradient":
        target = Candidates(step.samples, step.source, step.target[:, None], step.toward_label)
        return loss_step(view, forward, target, p, create_graph=True).displacement
    f = target_logit_diff(forward.logits, step.target, step.source)
    w = view.logit_diff_gradient(forward, f, create_graph=True)
    norm = per_sample_norm(w, dual_exponent(p))
    norm = norm.where(norm > 0, torch.inf)
    # Not |f| w / ||w||^2 as in the paper: the square of a small norm leaves fp32's range.
    return steepest_step(w / expand_to_images(norm), torch.ones_like(norm), f.abs() / norm, p)
