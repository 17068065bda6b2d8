"""The gradient of the perturbation's norm, by the implicit function theorem at the boundary.

In: a recorded attack. Out: the norm d as a differentiable function of the parameters W.

f is the logit of the target minus that of the source, w its gradient by the image.
With f(x + d n; W) = 0 along the unit direction n,
dd/dW = -(df/dW) / ||w|| by the implicit function theorem, ||w|| held constant (that of the last
step): one forward and backward at the boundary point. Where the attack linearises at the points
that it tested, the last test's graph is that forward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.norms import per_sample_norm
from pipeline.regularizer.trace import AttackTrace, Gradients, add, gap_of


def boundary(replay: AttackTrace) -> Tensor:
    """The perturbation's norm (N,), differentiable at the boundary point."""
    return _Boundary.apply(replay, *replay.view.parameters())


class _Boundary(torch.autograd.Function):
    """Forward gives the norm as it is; backward is the boundary's shift under the parameters."""

    @staticmethod
    def forward(ctx: Any, replay: AttackTrace, *parameters: Tensor) -> Tensor:
        ctx.replay = replay
        return per_sample_norm(replay.perturbation.delta, float(replay.config.norm))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
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
                gap = gap_of(logits, target[samples], source[samples])
            terms = torch.autograd.grad(gap, parameters, weight[samples], allow_unused=True)
            total = add(total, terms)
        return None, *total
