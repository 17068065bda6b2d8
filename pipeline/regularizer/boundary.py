"""The gradient of the perturbation's norm, by the implicit function theorem at the boundary.

In: a recorded attack. Out: the norm d as a differentiable function of the parameters W.

f is the logit of the target class minus that of the source class, w its gradient by the image.
With f(x + d n; W) = 0 along the unit direction n, dd/dW = -(df/dW) / ||w||, where ||w|| is taken as
a constant, that of the last step. This is one forward and backward at the boundary point. Where the
attack linearises at the points that it tests, the last test's graph is that forward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.norms import per_sample_norm
from pipeline.regularizer.trace import (
    AttackTrace,
    BoundaryForward,
    finite_or_zero,
    logit_diff_gradients,
)


def boundary(trace: AttackTrace) -> Tensor:
    """The perturbation's norm (N,), differentiable by the parameters."""
    return _Boundary.apply(trace, *trace.view.parameters())


class _Boundary(torch.autograd.Function):
    """Forward returns the norm; backward differentiates the boundary's shift."""

    @staticmethod
    def forward(ctx: Any, trace: AttackTrace, *_parameters: Tensor) -> Tensor:
        ctx.trace = trace
        return per_sample_norm(trace.perturbation.delta, float(trace.config.norm))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        trace: AttackTrace = ctx.trace
        steps, iterations = trace.perturbation.steps, trace.perturbation.iterations
        target, source = torch.zeros_like(iterations), torch.zeros_like(iterations)
        norm = torch.full_like(adjoint, torch.inf)
        for step in steps:  # each sample's last step is written last
            target[step.samples] = step.target
            source[step.samples] = step.source
            norm[step.samples] = step.gradient_norm
        weight = -(1.0 + trace.config.overshoot) * adjoint / norm
        forwards = (
            BoundaryForward(logits, target[samples], source[samples], weight[samples])
            for samples, logits in trace.boundary_logits()
        )
        gradients = logit_diff_gradients(trace.view, forwards)
        return None, *finite_or_zero(trace.view, gradients)
