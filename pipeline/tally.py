"""Sums over samples, ranks and steps, from which the logged means are made."""

from typing import NamedTuple

import torch

from pipeline.objective import Losses


class Tally(NamedTuple):
    """Sums of one or more steps; ``loss`` is the sum of batch mean times batch size."""

    samples: float = 0
    loss: float = 0
    cross_entropy: float = 0
    penalty: float = 0
    correct: float = 0
    ratio: float = 0
    iterations: float = 0
    flipped: float = 0
    broken: float = 0  # samples whose loss is not finite
    stop: float = 0  # ranks that were asked to stop

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

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


def sums(losses: Losses) -> torch.Tensor:
    """One batch's sums on its device, (10,) float64, in the order of `Tally`; no sync."""
    n = len(losses.cross_entropy)
    count = losses.loss.new_tensor(n, dtype=torch.float64)
    columns = [
        losses.cross_entropy,
        losses.penalty,
        losses.correct,
        losses.ratio,
        losses.iterations,
        losses.flipped,
        broken(losses),
    ]
    totals = torch.stack([column.double().sum() for column in columns])
    loss = losses.loss.detach().double() * n
    return torch.cat([torch.stack([count, loss]), totals, totals.new_zeros(1)])


def broken(losses: Losses) -> torch.Tensor:
    """Samples whose loss is not finite, (N,) bool; all where a method's term has no culprit."""
    finite = losses.cross_entropy.isfinite() & losses.penalty.isfinite()
    return ~finite | (finite.all() & ~losses.loss.detach().isfinite())
