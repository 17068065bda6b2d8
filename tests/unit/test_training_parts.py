"""The parts of the training loop that need no run: history, sums, timer, optimiser."""

import math

import pytest
import torch
from torch import nn

from pipeline.config import FinetuneConfig, OptimConfig, RuntimeConfig
from pipeline.training.history import History, HistoryEntry
from pipeline.training.interval_timer import IntervalTimer
from pipeline.training.objective import Losses
from pipeline.training.optimizer import Optimizer
from pipeline.training.step_stats import (
    LogWindow,
    StepStats,
    batch_sums,
    stack_sums,
    sum_batches,
    unstack_sums,
)

CPU = torch.device("cpu")


def entry(step: int, accuracy: float) -> HistoryEntry:
    return HistoryEntry(step, step / 10, {"accuracy": accuracy, "fgs": {"accuracy": []}})


def losses(cross_entropy: list[float]) -> Losses:
    values = torch.tensor(cross_entropy)
    return Losses(
        loss=values.mean(),
        cross_entropy=values,
        penalty=torch.full_like(values, 2),
        correct=values < 1,
        ratio=torch.full_like(values, 0.5),
        iterations=torch.full_like(values, 3),
        flipped=values > 0,
        weight=torch.ones_like(values),
    )


def test_the_reference_is_never_the_best() -> None:
    history = History("accuracy")
    scores = [0.9, 0.5, 0.7, 0.7, 0.6]
    is_best = [history.append(entry(step, score)) for step, score in enumerate(scores)]
    assert is_best == [False, True, True, False, False]
    assert history.best_step() == 2, "the first of equals"
    assert history.has_step(4)
    assert not history.has_step(5)


def test_an_evaluation_without_a_value_is_the_worst() -> None:
    history = History("rho2")
    rhos = [0.9, None, 0.5, None]
    is_best = [
        history.append(HistoryEntry(step, 0.0, {"rho2": rho})) for step, rho in enumerate(rhos)
    ]
    assert is_best == [False, True, True, False]
    assert history.best_step() == 2


def test_best_step_before_fine_tuning() -> None:
    history = History("accuracy")
    assert history.best_step() is None
    history.append(entry(0, 0.9))
    assert history.best_step() is None


def test_history_is_restored_from_plain_values() -> None:
    values = [entry(0, 0.9).to_dict(), entry(10, 0.8).to_dict()]
    assert list(values[0]) == ["step", "epoch", "accuracy", "fgs"]
    history = History("accuracy")
    history.restore(values)
    assert history.to_list() == values
    with pytest.raises(KeyError, match="epoch"):
        history.restore([{"step": 0}])


def test_checkpoints_depend_on_the_order_of_sums() -> None:
    names = "num_samples loss cross_entropy penalty num_correct ratio iterations num_flipped"
    names += " num_nonfinite num_stopped num_measured weight squared_weight"
    numbers = range(13)
    stats = StepStats(**dict(zip(names.split(), numbers, strict=True)))
    assert stats.to_list() == list(numbers)
    assert (stats + stats).to_list() == [2 * number for number in numbers]


def test_sums_are_stacked_by_name() -> None:
    stacked = stack_sums({"ratio": torch.tensor(0.5), "num_stopped": 1.0}, CPU)
    assert stacked.dtype == torch.float64
    assert unstack_sums(stacked) == StepStats(ratio=0.5, num_stopped=1.0)
    with pytest.raises(AssertionError, match="rato"):
        stack_sums({"rato": 1.0}, CPU)


def test_sums_over_the_batches_of_a_step() -> None:
    batches = [losses([0.5, 1.5]), losses([0.25, math.nan, 1.0])]
    assert batch_sums(batches[0])["num_samples"] == 2
    stats = unstack_sums(sum_batches(batches, CPU, stop=True))
    assert (stats.num_samples, stats.num_correct, stats.num_flipped) == (5, 2, 4)
    assert (stats.num_nonfinite, stats.num_stopped) == (1, 1)
    assert (stats.penalty, stats.ratio, stats.iterations) == (10, 2.5, 15)
    finite = unstack_sums(sum_batches(batches[:1], CPU, stop=False))
    assert (finite.loss, finite.num_stopped) == (2.0, 0)
    assert finite.means(with_methods=False) == {
        "loss": 1.0,
        "cross_entropy": 1.0,
        "accuracy": 0.5,
    }
    assert finite.means(with_methods=True)["regularizer"] == 2
    in_max_norm = finite.means(with_methods=True, rho_name="rho_inf")
    assert in_max_norm["rho_inf"] == finite.means(with_methods=True)["rho2"] > 0
    assert "rho2" not in in_max_norm


def test_timer_measures_one_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = 10.0, 3.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    timer = IntervalTimer(lambda: waited)
    now, waited = 14.0, 4.0
    assert (timer.seconds, timer.waited_seconds) == (4.0, 1.0)
    timer.restart()
    assert (timer.seconds, timer.waited_seconds) == (0.0, 0.0)


def test_speed_counts_images_since_the_timer_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = 0.0, 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    window = LogWindow(IntervalTimer(lambda: waited))
    window.restore([100.0])  # of the part before an interruption
    window.add(StepStats(num_samples=20))
    now, waited = 4.0, 1.0
    assert window.rates() == {"images_per_second": 5.0, "data_wait": 0.25}
    window.restart_timer()
    window.add(StepStats(num_samples=20))
    now = 5.0
    assert window.rates() == {"images_per_second": 20.0, "data_wait": 0.0}
    assert window.sums.num_samples == 140
    window.restart()
    assert window.sums == StepStats()


def test_optimizer_clips_and_resumes() -> None:
    config = FinetuneConfig(
        optim=OptimConfig(lr=1.0, momentum=0.0, weight_decay=0, max_grad_norm=0.5)
    )
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = Optimizer([weight], config, CPU)
    optimizer.set_lr(0.1)
    optimizer.backward((4 * weight).sum())
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert weight.grad is None
    assert optimizer.loss_scale is None
    other = Optimizer([weight], config, CPU)
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == optimizer.state_dict()
    half = FinetuneConfig(runtime=RuntimeConfig(precision="fp16"))
    assert Optimizer([weight], half, CPU).loss_scale == 65536


@pytest.mark.parametrize(
    ("before", "after"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")]
)
def test_an_optimizer_continues_in_another_precision(before: str, after: str) -> None:
    def optimizer(precision: str) -> Optimizer:
        config = FinetuneConfig(runtime=RuntimeConfig(precision=precision))
        return Optimizer([nn.Parameter(torch.ones(1))], config, CPU)

    continued = optimizer(after)
    continued.load_state_dict(optimizer(before).state_dict())
    assert continued.loss_scale == optimizer(after).loss_scale
