"""Learning rate, and whether the methods take part, as pure functions of the step."""

import math
from dataclasses import dataclass

from pipeline.config import FinetuneConfig


@dataclass(frozen=True)
class Schedule:
    """What each optimiser step of a run uses; steps count from 0."""

    config: FinetuneConfig
    steps_per_epoch: int

    @property
    def clean_steps(self) -> int:
        """Steps of the cross-entropy alone, before the others."""
        return self.config.train.pretrain_epochs * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """All steps of the run."""
        return self.clean_steps + self.config.train.epochs * self.steps_per_epoch

    def is_finetuning_step(self, step: int) -> bool:
        """Whether the methods take part; not in the clean epochs."""
        return step >= self.clean_steps

    def lr(self, step: int) -> float:
        """Learning rate."""
        if step < self.clean_steps:
            return self.config.train.pretrain_lr
        return self.config.optim.lr * self._factor(step - self.clean_steps)

    def should_evaluate(self, step: int) -> bool:
        """Whether to evaluate before this step: before and after fine-tuning, and as asked."""
        since, rest = divmod(step - self.clean_steps, self.steps_per_epoch)
        on_boundary = since >= 0 and rest == 0
        return on_boundary and (
            since % self.config.evaluation.every_epochs == 0 or step == self.total_steps
        )

    def _factor(self, step: int) -> float:
        schedule = self.config.schedule
        unit = self.steps_per_epoch if schedule.unit == "epochs" else 1
        warmup = schedule.warmup * unit
        rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
        if schedule.kind == "step":
            passed = sum(step >= milestone * unit for milestone in schedule.milestones)
            return rise * schedule.gamma**passed
        length = self.total_steps - self.clean_steps - warmup
        progress = min(1.0, max(0.0, step - warmup) / max(length, 1))
        if schedule.kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * progress))
        if schedule.kind == "linear":
            return rise * (1 - progress)
        return rise
