"""The recorded attack, which all ways of differentiating it share.

In: a perturbation with its steps. Out: the steps with their points, and the logits at the boundary,
for a backward pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pipeline.attacks.attack_state import Perturbation, Step
from pipeline.attacks.linearized_step import logit_differences
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.parameter_gradients import Gradients, add_gradients

# Gradients by weights are sums over positions and images, which must stay below 65,504.
_LARGEST_ADJOINT = 2.0**-4


class AttackTrace(NamedTuple):
    """What a backward pass needs of an attack on N images."""

    view: AttackView  # with the dropout masks of the attack
    images: Tensor  # (N, C, H, W) fp32, without a graph
    perturbation: Perturbation  # with its steps
    config: AttackConfig  # of the attack
    at_once: int  # largest number of images in the net at a time
    through_earlier_steps: bool = True  # whether a step depends on the point where it linearised

    def steps(self) -> Iterator[tuple[Step, Tensor]]:
        """Each step, from the last to the first, and the points (A, C, H, W) where it linearised.

        A step is removed from the record when it is yielded, before the next graph is built.
        """
        end = self.perturbation.delta / (1.0 + self.config.overshoot)
        while self.perturbation.steps:
            step = self.perturbation.steps.pop()
            start = end[step.samples] - step.displacement
            end[step.samples] = start / self.config.reach
            yield step, self.images[step.samples] + start

    def boundary_logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions (A,) of some samples and their logits (A, K) at the boundary, with a graph.

        First the samples whose graph was kept; that graph is released when they are yielded.
        """
        left = torch.ones_like(self.perturbation.flipped)
        num_left = len(left)
        while self.perturbation.boundary_passes:
            forward, rows, samples = self.perturbation.boundary_passes.pop()
            left.index_fill_(0, samples, value=0)  # `left[samples] = False` waits for the GPU
            num_left -= len(samples)
            with torch.enable_grad():
                logits = forward.logits[rows]
            del forward
            yield samples, logits
        # At the same points as the kept graphs, or without the overshoot.
        scale = self.config.reach / (1.0 + self.config.overshoot)
        # In their order, as of `nonzero`, which waits for the GPU.
        rest = left.byte().argsort(descending=True, stable=True)[:num_left]
        # An empty tensor is split into one part without samples.
        for samples in rest.split(self.at_once) if num_left else ():
            points = torch.add(self.images[samples], self.perturbation.delta[samples], alpha=scale)
            with torch.enable_grad():
                logits = self.view(points, samples)
            yield samples, logits


class BoundaryForward(NamedTuple):
    """Logits of A samples at the boundary, with a graph, and the weights of their f."""

    logits: Tensor  # (A, K)
    target: Tensor  # (A,) int64, class
    source: Tensor  # (A,) int64, class
    weight: Tensor  # (A,)


def logit_diff_gradients(view: AttackView, forwards: Iterable[BoundaryForward]) -> Gradients:
    """Gradients of the sum of weight * f by the view's parameters, one forward pass at a time."""
    total: Gradients = [None] * len(view.parameters())
    for logits, target, source, weight in forwards:
        with torch.enable_grad():
            f = target_logit_diff(logits, target, source)
        terms = scaled_gradients(view, f, view.parameters(), weight)
        del logits, f  # and the graph, before the next is made
        total = add_gradients(total, terms)
    return total


def scaled_gradients(
    view: AttackView, outputs: Tensor, inputs: Sequence[Tensor], adjoint: Tensor
) -> Sequence[Tensor | None]:
    """Gradients by some inputs; the adjoint is in fp16's range while they are computed in fp16.

    A loss scaler may be absent, or made for other gradients: the attack's precision is its own.
    """
    if view.gradient_scale == 1.0:
        return torch.autograd.grad(outputs, inputs, adjoint, allow_unused=True)
    largest = adjoint.abs().max()
    unit = largest.where(largest > 0, 1.0) / _LARGEST_ADJOINT
    gradients = torch.autograd.grad(outputs, inputs, adjoint / unit, allow_unused=True)
    return [None if gradient is None else gradient * unit for gradient in gradients]


def finite_or_zero(view: AttackView, gradients: Gradients) -> Gradients:
    """All gradients, or zeros where one of them is not finite, in fp16.

    An image that leaves fp16's range makes gradients NaN. A loss scaler would skip the step; there
    is none if only the attack is in fp16, and the cross-entropy's gradient is good.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if view.precision != torch.float16 or not present:
        return gradients
    infinite = ~get_total_norm(present).isfinite()
    return [None if g is None else g.masked_fill(infinite, 0.0) for g in gradients]


def target_logit_diff(logits: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """f: the logit of the target minus that of the source, (A,)."""
    return logit_differences(logits, source, target[:, None])[:, 0]
