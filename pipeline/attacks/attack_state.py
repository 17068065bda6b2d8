"""What an attack works on and what it returns: samples, steps, perturbations.

Letters, as in the paper: x is the image, f the logit of the class to reach minus that of the class
to leave, w the gradient of f by the image, r the step of one iteration, for p = 2: |f| w / ||w||^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pipeline.models.attack_view import ForwardPass


@dataclass(frozen=True)
class Step:
    """One iteration, for the A samples that were unfinished before it."""

    samples: Tensor  # (A,) int64, positions in the batch
    displacement: Tensor  # (A, C, H, W), the step r
    source: Tensor  # (A,) int64, the class to leave
    target: Tensor  # (A,) int64, the class to reach
    logit_diff: Tensor  # (A,) f before the step
    gradient_norm: Tensor  # (A,) ||w||_q; infinite where w vanished
    toward_label: Tensor  # (A,) bool, samples that move toward their label
    num_queries: Tensor  # (A,) int64, number of gradients
    iteration: int  # from 0


class BoundaryPass(NamedTuple):
    """A forward pass at x + delta, for samples whose class had changed there, among others."""

    forward: ForwardPass
    rows: Tensor  # (A,) int64, positions in the forward pass
    samples: Tensor  # (A,) int64, positions in the batch


@dataclass(frozen=True)
class Perturbation:
    """Perturbations of a batch of N images."""

    delta: Tensor  # (N, C, H, W), with the overshoot
    iterations: Tensor  # (N,) int64, steps taken
    flipped: Tensor  # (N,) bool, whether the class at x + delta is the wanted one
    no_gradient: Tensor  # (N,) bool, ended because the gradient was zero or not finite
    prediction: Tensor  # (N,) int64, class at x + delta
    clean: Tensor  # (N,) int64, class at x
    steps: list[Step] = field(default_factory=list)  # if they were recorded
    boundary_passes: list[BoundaryPass] = field(default_factory=list)  # at most one

    @classmethod
    def empty(cls, images: Tensor, clean: Tensor) -> "Perturbation":
        """Zeros, for `write_rows`."""
        return cls(
            delta=torch.zeros_like(images),
            iterations=torch.zeros_like(clean),
            flipped=torch.zeros_like(clean, dtype=torch.bool),
            no_gradient=torch.zeros_like(clean, dtype=torch.bool),
            prediction=clean.clone(),
            clean=clean,
        )

    def write_rows(self, done: "IterationResult", ended: Tensor, delta: Tensor, first: int) -> None:
        """Write the results of the rows ``ended`` of an iteration; keys count from ``first``."""
        key = done.state.key[ended] - first
        self.delta[key] = delta
        self.iterations[key] = done.state.iteration[ended]
        self.flipped[key] = done.flipped[ended]
        self.no_gradient[key] = done.no_gradient[ended]
        self.prediction[key] = done.prediction[ended]

    @classmethod
    def concatenate(cls, parts: list["Perturbation"]) -> "Perturbation":
        """Perturbations of consecutive parts of a batch, without boundary passes."""
        return cls(
            delta=torch.cat([part.delta for part in parts]),
            iterations=torch.cat([part.iterations for part in parts]),
            flipped=torch.cat([part.flipped for part in parts]),
            no_gradient=torch.cat([part.no_gradient for part in parts]),
            prediction=torch.cat([part.prediction for part in parts]),
            clean=torch.cat([part.clean for part in parts]),
            steps=[step for part in parts for step in part.steps],
        )


def split_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B,) and (A - B,) int64 where a mask (A,) is true and false.

    The host waits once for the mask; `Tensor.nonzero` of each part would wait twice.
    """
    on_host = mask.cpu()
    parts = (on_host.nonzero(), (~on_host).nonzero())
    true, false = (rows.squeeze(1).to(mask.device, non_blocking=True) for rows in parts)
    return true, false


class SampleColumns:
    """Base of dataclasses whose fields are tensors (A, ...) of A samples."""

    def __len__(self) -> int:
        return len(getattr(self, self._names()[0]))

    def take(self, rows: Tensor | slice) -> Self:
        """Some of the samples."""
        return type(self)(*(getattr(self, name)[rows] for name in self._names()))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts whose columns have the same shape but for A."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls._names()))

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class AttackState(SampleColumns):
    """A unfinished samples, of one batch or of several."""

    key: Tensor  # (A,) int64, the caller's numbers of the samples
    images: Tensor  # (A, C, H, W)
    total_step: Tensor  # (A, C, H, W), sum of the steps so far
    label: Tensor  # (A,) int64, class to leave, or to reach where toward_label
    toward_label: Tensor  # (A,) bool
    choices: Tensor  # (A, M) int64, candidate classes
    iteration: Tensor  # (A,) int64, steps taken
    num_queries: Tensor  # (A,) int64, forward passes and gradients, with the clean forward


class IterationResult(NamedTuple):
    """The outcome of an iteration for A samples."""

    state: AttackState  # all A, after the step
    step: Step  # its samples are the keys
    prediction: Tensor  # (A,) int64, class at the tested point
    flipped: Tensor  # (A,) bool, whether it is the wanted one
    no_gradient: Tensor  # (A,) bool, there was no finite step
    forward: ForwardPass | None  # at the tested points, with ``keep_graph``

    def take(self, rows: Tensor) -> "IterationResult":
        """Some of the samples, without the step and the forward pass of all."""
        return IterationResult(
            self.state.take(rows),
            self.step,
            self.prediction[rows],
            self.flipped[rows],
            self.no_gradient[rows],
            None,
        )

    @property
    def ended(self) -> Tensor:
        """(A,) bool: flipped, or without a step to take."""
        return self.flipped | self.no_gradient
