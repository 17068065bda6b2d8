"""Sums over samples, ranks and steps, from which the logged means are made."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from pipeline.errors import UserError, first_few
from pipeline.training.interval_timer import IntervalTimer
from pipeline.training.objective import Losses


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Sums over the samples of one or more steps.

    Checkpoints hold the values as a list in the order of these fields, so the order must not
    change.
    """

    num_samples: float = 0
    loss: float = 0  # sum over batches of mean loss times number of samples
    cross_entropy: float = 0
    penalty: float = 0
    num_correct: float = 0
    ratio: float = 0
    iterations: float = 0
    num_flipped: float = 0
    num_nonfinite: float = 0  # samples whose loss is not finite
    num_stopped: float = 0  # ranks that have received a signal to stop
    num_measured: float = 0  # samples whose perturbation was measured
    weight: float = 0  # sum of how often each of them counts
    squared_weight: float = 0

    def __add__(self, other: "StepStats") -> "StepStats":
        pairs = zip(self.to_list(), other.to_list(), strict=True)
        return StepStats(*(a + b for a, b in pairs))

    def to_list(self) -> list[float]:
        """The values in the order of the fields."""
        return [getattr(self, name) for name in _NAMES]

    def means(self, with_methods: bool, rho_name: str = "rho2") -> dict[str, float]:
        """The means over samples that are logged.

        Args:
            with_methods: include the values that methods measure, such as the regulariser.
            rho_name: name of the mean ratio in the norm of the training's attack.
        """
        n = max(self.num_samples, 1)
        means = {
            "loss": self.loss / n,
            "cross_entropy": self.cross_entropy / n,
            "accuracy": self.num_correct / n,
        }
        if with_methods:
            weight = max(self.weight, 1e-9)  # of the samples whose perturbation was measured
            means |= {
                "regularizer": self.penalty / n,
                rho_name: self.ratio / weight,
                "iterations": self.iterations / weight,
                "flipped": self.num_flipped / weight,
                "measured": self.num_measured / n,
                # Kish's effective sample size, relative to the number of samples.
                "effective": self.weight**2 / max(self.squared_weight, 1.0) / n,
            }
        return means


_NAMES = tuple(field.name for field in dataclasses.fields(StepStats))


def stack_sums(sums: Mapping[str, Tensor | float], device: torch.device) -> Tensor:
    """Write named sums into one tensor, so that a single collective adds them up over ranks.

    Args:
        sums: values of `StepStats` by name; those that are missing count as zero.
        device: device of the result.

    Returns:
        A float64 tensor, which `unstack_sums` reads. Sums that are on ``device`` stay there, so
        the host does not wait for the GPU.
    """
    unknown = sums.keys() - set(_NAMES)
    assert not unknown, f"StepStats has no {unknown}"
    values = (sums.get(name, 0.0) for name in _NAMES)
    return torch.stack(
        [
            value.to(device, torch.float64)
            if isinstance(value, Tensor)
            else torch.full((), value, dtype=torch.float64, device=device)
            for value in values
        ]
    )


def unstack_sums(stacked: Tensor) -> StepStats:
    """The sums that `stack_sums` wrote into a tensor."""
    return StepStats(*stacked.tolist())


class LogWindow:
    """Sums and speed since the last line of metrics.

    Attributes:
        sums: sums over all steps since that line. A checkpoint stores them, so that a resumed run
            writes the same line as a run without interruption.
    """

    def __init__(self, timer: IntervalTimer) -> None:
        self.sums = StepStats()
        self._timer = timer
        self._num_timed = 0.0  # samples since the timer was started

    def restore(self, sums: Sequence[float]) -> None:
        """Continue with the sums of a checkpoint; an empty list means that there are none."""
        self.sums = StepStats(*sums)

    def add(self, stats: StepStats) -> None:
        """Add the sums of a step."""
        self.sums += stats
        self._num_timed += stats.num_samples

    def rates(self) -> dict[str, float]:
        """Images per second, and the share of time spent waiting for data."""
        seconds = self._timer.seconds
        return {
            "images_per_second": self._num_timed / seconds,
            "data_wait": self._timer.waited_seconds / seconds,
        }

    def restart_timer(self) -> None:
        """Measure the speed from now on, as after an evaluation; the sums stay."""
        self._timer.restart()
        self._num_timed = 0.0

    def restart(self) -> None:
        """Begin the next line of metrics."""
        self.sums = StepStats()
        self.restart_timer()


def batch_sums(losses: Losses) -> dict[str, Tensor | float]:
    """Sums over one batch, named as in `StepStats`; they stay on the device of the losses."""
    num_samples = len(losses.cross_entropy)
    weight = losses.weight.double()
    per_sample = {
        "cross_entropy": losses.cross_entropy,
        "penalty": weight * losses.penalty,
        "num_correct": losses.correct,
        "ratio": weight * losses.ratio,
        "iterations": weight * losses.iterations,
        "num_flipped": weight * losses.flipped,
        "num_nonfinite": is_nonfinite(losses),
        "num_measured": weight > 0,
        "weight": weight,
        "squared_weight": weight.square(),
    }
    return {
        "num_samples": float(num_samples),
        "loss": losses.loss.detach().double() * num_samples,
        **{name: values.double().sum() for name, values in per_sample.items()},
    }


def sum_batches(batches: Iterable[Losses], device: torch.device, stop: bool) -> Tensor:
    """The sums of this rank over the batches of a step, stacked.

    Args:
        batches: the losses of each batch, at least one.
        device: device of the result.
        stop: whether this rank has received a signal to stop.
    """
    parts = [batch_sums(losses) for losses in batches]
    parts[0]["num_stopped"] = float(stop)  # with a batch: one tensor less to make in each step
    return functools.reduce(torch.add, (stack_sums(part, device) for part in parts))


def is_nonfinite(losses: Losses) -> Tensor:
    """Which samples have a loss that is not finite, (N,) bool.

    All of them if the batch's loss is not finite although all values per sample are: a method may
    add a term without values per sample.
    """
    finite = losses.cross_entropy.isfinite() & losses.penalty.isfinite()
    return ~finite | (finite.all() & ~losses.loss.detach().isfinite())


def raise_nonfinite(step: int, number: int, names: Sequence[str]) -> NoReturn:
    """Stop a run whose loss is not finite.

    Args:
        step: number of the step, from 1.
        number: number of images whose loss is not finite.
        names: ids of these images.

    Raises:
        UserError: always; names the first images and the remedies.
    """
    raise UserError(
        f"the loss is not finite in step {step}, for {number} images: {first_few(names)}; "
        "earlier checkpoints are kept; try a lower optim.lr, optim.max_grad_norm, or "
        "runtime.precision fp32"
    )
