"""The learning rate and the kind of each step, as pure functions of the step's number."""

import math
from dataclasses import dataclass

from pipeline.config import FinetuneConfig


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run; its optimiser steps are numbered from 0."""

    config: FinetuneConfig
    steps_per_epoch: int

    @property
    def clean_steps(self) -> int:
        """Number of steps on the cross-entropy alone, before fine-tuning."""
        return self.config.train.pretrain_epochs * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return self.clean_steps + self.config.train.epochs * self.steps_per_epoch

    def is_finetuning_step(self, step: int) -> bool:
        """Whether the methods are used in this step; they are not in the clean epochs."""
        return step >= self.clean_steps

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.clean_steps:
            return self.config.train.pretrain_lr
        return self.config.optim.lr * self._factor(step - self.clean_steps)

    def should_evaluate(self, step: int) -> bool:
        """Whether to evaluate before this step: before and after fine-tuning, and after every
        ``evaluation.every_epochs`` epochs of it."""
        epoch, step_in_epoch = divmod(step - self.clean_steps, self.steps_per_epoch)
        if epoch < 0 or step_in_epoch > 0:
            return False
        return epoch % self.config.evaluation.every_epochs == 0 or step == self.total_steps

    def _factor(self, step: int) -> float:
        """Factor on ``optim.lr`` in a step of fine-tuning, numbered from its start."""
        schedule = self.config.schedule
        steps_per_unit = self.steps_per_epoch if schedule.unit == "epochs" else 1
        warmup_steps = schedule.warmup * steps_per_unit
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
        if schedule.kind == "step":
            num_passed = sum(step >= m * steps_per_unit for m in schedule.milestones)
            return warmup * schedule.gamma**num_passed
        num_steps = self.total_steps - self.clean_steps - warmup_steps
        progress = min(1.0, max(0.0, step - warmup_steps) / max(num_steps, 1))
        if schedule.kind == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * progress))
        if schedule.kind == "linear":
            return warmup * (1 - progress)
        return warmup
