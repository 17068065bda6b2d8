"""The Deep Defense regulariser and its exact gradient.

In: a net, images, labels and the clean logits. Out: ||dx|| / ||x|| of every sample, as a
differentiable function of the net's parameters, and what the attack saw on the way.

The perturbation is a sum of DeepFool steps, each a function of the parameters W both directly and
through the point where it linearises. Reverse-mode differentiation of that recurrence needs one
step at a time: with u the adjoint of the sum after step i,

    dL/dW += (dr_i/dW)^T u,        u <- u + (dr_i/dz)^T u        for i from the last to the first,

where z = x + r_0 + ... + r_{i-1}. Each step is computed again with a graph in the backward pass,
for the samples that took it only, towards the class that the sweep chose. So memory holds the
graph of one step whatever their number (gradient checkpointing at every iteration), and the
result is exact for any net whose second derivatives autograd knows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.config import RegularizerConfig
from pipeline.deepfool import Perturbation, Step, deepfool, linear_step
from pipeline.errors import UserError
from pipeline.models import AttackView, upcast


@dataclass(frozen=True)
class Robustness:
    """What the regulariser knows of a batch of N images."""

    ratio: Tensor  # (N,) ||dx||_2 / ||x||_2, differentiable
    correct: Tensor  # (N,) bool, in T (else in F)
    flipped: Tensor  # (N,) bool
    iterations: Tensor  # (N,) int64


def robustness(
    view: AttackView, images: Tensor, labels: Tensor, logits: Tensor, config: RegularizerConfig
) -> Robustness:
    """Attack each image and measure the perturbation.

    Samples classified correctly (T) are moved away from their label, the others (F) towards it.

    Args:
        view: the net as the attack sees it.
        images: (N, C, H, W), in the network's input space.
        labels: (N,).
        logits: (N, K) of ``view`` at the images, without a graph.
        config: of the regulariser.
    """
    images = upcast(images)
    correct = logits.argmax(dim=1) == labels
    delta = torch.zeros_like(images)
    iterations = torch.zeros_like(labels)
    flipped = torch.zeros_like(correct)
    for towards, chosen in ((False, correct), (True, ~correct)):
        members = chosen.nonzero().squeeze(1)
        if len(members) == 0:
            continue
        batch = images[members]
        found = deepfool(
            view,
            *(batch, labels[members], logits[members], config.attack),
            towards=towards,
            record=True,
        )
        delta = delta.index_copy(0, members, differentiable(view, batch, found, config))
        iterations[members] = found.iterations
        flipped[members] = found.flipped
    norm = delta.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return Robustness(norm, correct, flipped, iterations)


def penalty(found: Robustness, config: RegularizerConfig) -> Tensor:
    """R of each sample, equation (5): exp(-c ratio) in T, exp(d ratio) in F; (N,)."""
    exponent = torch.where(found.correct, -config.c * found.ratio, config.d * found.ratio)
    return exponent.exp()


def differentiable(
    view: AttackView, images: Tensor, found: Perturbation, config: RegularizerConfig
) -> Tensor:
    """The perturbation ``found`` as a differentiable function of the net's parameters."""
    factor = 1.0 + config.attack.overshoot
    return _Unrolled.apply(view, images, found.delta, found.steps, factor, *view.parameters())


class _Unrolled(torch.autograd.Function):
    """Forward gives the perturbation as it is; backward unrolls the steps that made it."""

    @staticmethod
    def forward(
        ctx: Any,
        view: AttackView,
        images: Tensor,
        delta: Tensor,
        steps: list[Step],
        factor: float,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.view, ctx.steps, ctx.factor = view, steps, factor
        ctx.seed = view.seed
        ctx.save_for_backward(images)
        ctx.num_parameters = len(parameters)
        return delta.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        (images,) = ctx.saved_tensors
        view = ctx.view
        total: list[Tensor | None] = [None] * ctx.num_parameters
        adjoint = ctx.factor * adjoint
        view.seed, seed = ctx.seed, view.seed
        for number, step in reversed(list(enumerate(ctx.steps))):
            u = adjoint[step.samples]
            gradients = _replay(view, images[step.samples] + step.start, step, u, number > 0)
            total = [_add(a, b) for a, b in zip(total, gradients, strict=False)]
            if number > 0 and gradients[-1] is not None:
                adjoint.index_add_(0, step.samples, gradients[-1])
            del gradients  # before the next step's graph is built
        view.seed = seed
        return None, None, None, None, None, *total


def _replay(
    view: AttackView, points: Tensor, step: Step, adjoint: Tensor, through_points: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of <adjoint, step> with respect to the parameters, and then to the points."""
    try:
        with torch.enable_grad():
            moved = linear_step(view, points.requires_grad_(), step)
        wanted = [*view.parameters(), points] if through_points else view.parameters()
        return torch.autograd.grad(moved, wanted, adjoint, allow_unused=True)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise UserError(
            f"the net has a layer without a second derivative ({str(error).splitlines()[0]}), "
            "which the regulariser needs; replace it by simpler operations"
        ) from None


def _add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    if total is None or term is None:
        return term if total is None else total
    return total.add_(term)
