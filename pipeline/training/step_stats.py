"""Sums over samples, ranks and steps, from which the logged means are made."""

import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch

from pipeline.errors import UserError, first_few
from pipeline.training.objective import Losses


class StepStats(NamedTuple):
    """Sums of one or more steps; ``loss`` is the sum of batch mean times batch size."""

    samples: float = 0
    loss: float = 0
    cross_entropy: float = 0
    penalty: float = 0
    correct: float = 0
    ratio: float = 0
    iterations: float = 0
    flipped: float = 0
    num_nonfinite: float = 0  # samples whose loss is not finite
    stop: float = 0  # ranks that were asked to stop

    def __add__(self, other: "StepStats") -> "StepStats":  # type: ignore[override]
        return StepStats(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self, regularised: bool) -> dict[str, float]:
        """What is logged; the attack's numbers only where there was one."""
        n = max(self.samples, 1)
        means = {
            "loss": self.loss / n,
            "cross_entropy": self.cross_entropy / n,
            "accuracy": self.correct / n,
        }
        if regularised:
            means |= {
                "regularizer": self.penalty / n,
                "rho2": self.ratio / n,
                "iterations": self.iterations / n,
                "flipped": self.flipped / n,
            }
        return means


class LogWindow:
    """Sums and time since the last row of metrics.

    Attributes:
        sums: of all steps since that row; a checkpoint keeps them, so that a resumed run writes the
            row of an undisturbed one.
    """

    def __init__(self, sums: Sequence[float] = ()) -> None:
        self.sums = StepStats(*sums)
        self.restart_clock(0.0)

    def restart_clock(self, wait_seconds: float) -> None:
        """Measure speed from now on, as after an evaluation or a resume.

        Args:
            wait_seconds: that the loader has kept training waiting so far.
        """
        self._begin, self._begin_wait = time.perf_counter(), wait_seconds
        self._begin_samples = self.sums.samples

    def rates(self, wait_seconds: float) -> dict[str, float]:
        """Images a second, and the share of time spent waiting for data, since the clock began."""
        seconds = time.perf_counter() - self._begin
        return {
            "images_per_second": (self.sums.samples - self._begin_samples) / seconds,
            "data_wait": (wait_seconds - self._begin_wait) / seconds,
        }

    def restart(self, wait_seconds: float) -> None:
        """Begin the next row."""
        self.sums = StepStats()
        self.restart_clock(wait_seconds)


def batch_sums(losses: Losses) -> torch.Tensor:
    """One batch's sums on its device, (10,) float64, in the order of `StepStats`; no sync."""
    n = len(losses.cross_entropy)
    count = losses.loss.new_tensor(n, dtype=torch.float64)
    columns = [
        losses.cross_entropy,
        losses.penalty,
        losses.correct,
        losses.ratio,
        losses.iterations,
        losses.flipped,
        is_nonfinite(losses),
    ]
    totals = torch.stack([column.double().sum() for column in columns])
    loss = losses.loss.detach().double() * n
    return torch.cat([torch.stack([count, loss]), totals, totals.new_zeros(1)])


def is_nonfinite(losses: Losses) -> torch.Tensor:
    """Samples whose loss is not finite, (N,) bool; all where a term is not finite that has no value
    for each sample."""
    finite = losses.cross_entropy.isfinite() & losses.penalty.isfinite()
    return ~finite | (finite.all() & ~losses.loss.detach().isfinite())


def raise_nonfinite(step: int, number: int, names: Sequence[str]) -> NoReturn:
    """Stop a run whose loss is not finite.

    Args:
        step: that failed, from 1.
        number: of images whose loss is not finite.
        names: their ids.

    Raises:
        UserError: always; names the first images and the remedies.
    """
    raise UserError(
        f"the loss is not finite in step {step}, for {number} images: "
        f"{first_few(names)}; the checkpoints before it are kept: try a lower "
        "optim.lr, optim.max_grad_norm, or runtime.precision fp32"
    )
