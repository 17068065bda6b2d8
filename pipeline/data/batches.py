"""The batches of each rank: the plan divided into `BatchSpec`s.

An optimiser step takes the next ``train.batch_size`` positions of the epoch, for any number of
ranks and of accumulated passes. These only decide how the positions are divided.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.config import DataConfig, TrainConfig
from pipeline.data.index import Index
from pipeline.data.plan import BatchSpec, evaluation_windows, order, training_windows
from pipeline.errors import UserError


@dataclass(frozen=True)
class TrainingPlan:
    """The batches of a run for one rank among ``size``."""

    index: Index
    data: DataConfig
    train: TrainConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        passes = self.size * self.train.gradient_accumulation_steps
        if self.train.batch_size % passes:
            raise UserError(
                f"train.batch_size {self.train.batch_size} is not divisible by {self.size} ranks "
                "times train.gradient_accumulation_steps "
                f"{self.train.gradient_accumulation_steps} = {passes}"
            )
        if self.steps_per_epoch == 0:
            raise UserError(
                f"train.batch_size {self.train.batch_size} is larger than the {len(self.index)} "
                f"images of {self.index.path}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch. The images that remain are different in each epoch."""
        return len(self.index) // self.train.batch_size

    @property
    def pass_size(self) -> int:
        """Images of one rank in one forward-backward pass."""
        return self.train.batch_size // (self.size * self.train.gradient_accumulation_steps)

    def part(self, number: int) -> slice:
        """The positions in a step's batch that this rank's pass ``number`` takes."""
        start = (number * self.size + self.rank) * self.pass_size
        return slice(start, start + self.pass_size)

    def specs(self, first_step: int, last_step: int) -> Iterator[BatchSpec]:
        """This rank's batches of the steps ``first_step`` to ``last_step`` (exclusive)."""
        epoch, rows = -1, np.zeros(0, np.int64)
        for step in range(first_step, last_step):
            new_epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if new_epoch != epoch:
                epoch, rows = new_epoch, order(len(self.index), self.train.seed, new_epoch)
            for number in range(self.train.gradient_accumulation_steps):
                start = step_in_epoch * self.train.batch_size + self.part(number).start
                yield self._spec(rows[start : start + self.pass_size], epoch, start)

    def _spec(self, rows: np.ndarray, epoch: int, start: int) -> BatchSpec:
        width, height = self.index.width[rows], self.index.height[rows]
        return BatchSpec(
            rows, training_windows(width, height, self.train.seed, epoch, start, self.data)
        )


def evaluation_specs(
    index: Index, rows: np.ndarray, data: DataConfig, batch_size: int
) -> Iterator[BatchSpec]:
    """Centre crops of ``rows``, in this order; the last batch may be smaller."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield BatchSpec(batch, evaluation_windows(index.width[batch], index.height[batch], data))
