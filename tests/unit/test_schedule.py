"""Learning rates and the steps at which a run evaluates."""

import pytest

from pipeline.config import (
    FinetuneConfig,
    ScheduleConfig,
    TrainConfig,
)
from pipeline.training.schedule import Schedule


def schedule(
    steps_per_epoch: int = 10, clean: int = 1, epochs: int = 4, **options: object
) -> Schedule:
    config = FinetuneConfig(schedule=ScheduleConfig(**options))  # type: ignore[arg-type]
    config.train = TrainConfig(pretrain_epochs=clean, epochs=epochs, pretrain_lr=0.3)
    config.optim.lr = 1.0
    return Schedule(config, steps_per_epoch)


def test_schedules() -> None:
    halved = schedule(kind="step", milestones=[2.0], gamma=0.5)
    assert [halved.lr(step) for step in (0, 9, 10, 29, 30, 49)] == [0.3, 0.3, 1, 1, 0.5, 0.5]
    assert [halved.is_finetuning_step(9), halved.is_finetuning_step(10)] == [False, True]
    by_steps = schedule(kind="step", unit="steps", milestones=[5], warmup=2)
    assert [by_steps.lr(10 + k) for k in (0, 1, 2, 4, 5)] == [0.5, 1, 1, 1, 0.5]
    cosine = schedule(kind="cosine", clean=0)
    assert cosine.lr(0) == 1
    assert cosine.lr(20) == pytest.approx(0.5)
    assert cosine.lr(39) < 0.01
    linear = schedule(kind="linear", clean=0)
    assert linear.lr(10) == pytest.approx(0.75)
    assert schedule(kind="constant").lr(40) == 1


def test_evaluations_are_before_after_and_as_asked() -> None:
    plan = schedule(epochs=5)
    plan.config.evaluation.every_epochs = 2
    due = [step for step in range(plan.total_steps + 1) if plan.should_evaluate(step)]
    assert due == [10, 30, 50, 60]
