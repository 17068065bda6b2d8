"""The recorded attack, which both ways of differentiating it share.

In: what DeepFool found, with its steps. Out: the steps with their points, and the logits at the
boundary, for a backward pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.deepfool import Perturbation, Step
from pipeline.attacks.linearized_step import logit_differences
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.fixed_dropout import DropoutMasks

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


def gap_of(logits: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Logit of the target minus that of the source, (A,)."""
    return logit_differences(logits, source, target[:, None])[:, 0]


def add(total: Gradients, terms: Any) -> Gradients:
    """Sums, in place of the first; ``terms`` may have more entries."""
    return [
        (a if b is None else b) if a is None or b is None else a.add_(b)
        for a, b in zip(total, terms, strict=False)
    ]
