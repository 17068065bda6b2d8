"""Steps, evaluations and runs on the pretended CUDA device, in this process.

There is one rank. NCCL, DDP's reducer and DALI's GPU operators have substitutes, which
`substituted` puts into the pipeline.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pipeline.config import EvaluateConfig
from pipeline.data.batches import TrainingPlan
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.samples import Samples
from pipeline.finetune import make_trainer, print_description, report, train
from pipeline.models import prepare
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.reproducibility import set_tf32
from pipeline.training.schedule import Schedule
from pipeline.training.step_runner import StepRunner
from pipeline.training.trainer import Trainer
from tests.helpers import images, pretended_cases
from tests.helpers.pretended_cases import (
    NETS,
    EvaluationCase,
    Options,
    StepCase,
)
from tests.helpers.pretended_cuda import CUDA, counts

CPU = torch.device("cpu")
Outcome = dict[str, Any]


class OneRank(DistributedContext):
    """The only rank, without a process group: NCCL needs a driver."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]


class WithoutDdp(nn.Module):
    """In place of DistributedDataParallel, whose reducer makes CUDA events."""

    def __init__(self, objective: nn.Module, *_: Any, **__: Any) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.objective(*args, **options)

    def no_sync(self) -> Any:
        return nullcontext()


class CpuLoader(Loader):
    """Decodes on the CPU, and copies the batches to the device as DALI would: without a wait."""

    def __init__(
        self, index: Index, specs: Any, config: Any, device: torch.device, *sizes: int
    ) -> None:
        super().__init__(index, specs, config, CPU, *sizes)
        self.target = device

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for batch in super().__iter__():
            pixels, labels = (
                tensor.to(self.target, non_blocking=True) for tensor in (batch.images, batch.labels)
            )
            yield Batch(pixels, labels, batch.rows)


def make_index(folder: Path) -> Index:
    """48 pictures of 40 x 32 pixels, of four classes."""
    members = {
        f"{'abcd'[number % 4]}/{number:02d}.png": images.encode(
            images.picture(40, 32, number), "PNG"
        )
        for number in range(48)
    }
    return images.index_tar(folder / "pictures.tar", members)


def one_rank(device: torch.device) -> OneRank:
    return OneRank(0, 1, 0, 1, device)


def make_runner(case: StepCase, pictures: Index, device: torch.device) -> StepRunner:
    """What runs the steps of a case."""
    torch.manual_seed(0)
    config = pretended_cases.step_config(case)
    net = prepare.move_net(NETS[case.net](), config.runtime, device)
    plan = TrainingPlan(pictures, config.data, config.train, 0, 1)
    schedule = Schedule(config, plan.steps_per_epoch)
    runner = StepRunner(net, config, one_rank(device), plan, schedule)
    runner.objective.typical_ratio = case.typical_ratio
    return runner


def make_batch(runner: StepRunner, device: torch.device) -> Batch:
    """Random images; every second one is classified correctly at the first weights."""
    generator = torch.Generator().manual_seed(1)
    size, side = runner.plan.pass_size, runner.config.data.crop_size
    pixels = torch.randn(size, 3, side, side, generator=generator).to(device)
    with torch.no_grad():
        predictions = runner.objective.view(pixels).argmax(dim=1)
    is_correct = torch.arange(size, device=device) % 2 == 0
    return Batch(
        pixels, torch.where(is_correct, predictions, predictions - 1).abs(), np.arange(size)
    )


def run_steps(case: StepCase, pictures: Index, device: torch.device = CUDA) -> Outcome:
    """Two optimiser steps; the second is counted: the first also tries the net."""
    runner = make_runner(case, pictures, device)
    first_weights = _weights(runner)
    batches = [make_batch(runner, device)] * runner.config.train.gradient_accumulation_steps
    runner.run(0, iter(batches), None)
    counts.restart()
    stats = runner.run(1, iter(batches), None)
    outcome = counted()
    devices = {str(parameter.device) for parameter in runner.parameters}
    weights = _weights(runner)
    return outcome | {
        "loss": stats.loss / stats.num_samples,
        "iterations": stats.iterations / max(stats.weight, 1e-9),
        "measured": stats.num_measured,
        "devices": sorted(devices),
        "change": float((weights - first_weights).abs().max()),
        "weights": weights,
    }


def _weights(runner: StepRunner) -> Tensor:
    """All trained parameters in one tensor of the CPU."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in runner.parameters])


def rehearse_steps(case: StepCase, pictures: Index) -> Outcome:
    """`run_steps`; in fp32 with the largest difference of a weight to the same steps on the CPU."""
    outcome = run_steps(case, pictures)
    weights = outcome.pop("weights")
    if case.options.get("runtime.precision", "fp32") == "fp32":
        on_cpu = run_steps(case, pictures, CPU)["weights"]
        outcome["difference"] = float((weights - on_cpu).abs().max())
    return outcome


def evaluate(
    case: EvaluationCase, pictures: Index, device: torch.device = CUDA
) -> tuple[Samples, Outcome]:
    """An evaluation of all pictures in batches of 16."""
    torch.manual_seed(0)
    data = pretended_cases.step_config(StepCase({}, case.net)).data
    config = EvaluateConfig(data=data, evaluation=pretended_cases.evaluation_config(case.options))
    net = prepare.move_net(NETS[case.net]().eval(), config.runtime, device)
    measurement = Measurement(net, pictures, config, one_rank(device), 2)
    counts.restart()
    samples, _ = measurement.run(np.arange(len(pictures)))
    num_batches = len(pictures) // config.evaluation.batch_size
    reason = measurement.no_lower_bound
    return samples, counted() | {"num_batches": num_batches, "no_lower_bound": reason}


def rehearse_evaluation(case: EvaluationCase, pictures: Index) -> Outcome:
    """`evaluate`, with the largest relative difference of a norm to those on the CPU."""
    samples, outcome = evaluate(case, pictures)
    on_cpu, _ = evaluate(case, pictures, CPU)
    ratios = samples.perturbation_norm / on_cpu.perturbation_norm
    return outcome | {
        "rows": samples.row.tolist(),
        "difference": float(np.abs(ratios - 1).max()),
        "changed_class": float(samples.flipped.mean()),
    }


def rehearse_training(options: Options, pictures: Index) -> Outcome:
    """A run of pipeline/finetune.py to its end, and one that resumes from its first checkpoint."""
    with tempfile.TemporaryDirectory() as parent:
        whole, resumed = Path(parent, "whole"), Path(parent, "resumed")
        first = _finetune(options, pictures, whole, "never")
        checkpoint = min((whole / "checkpoints").glob("step-*.pt"))
        second = _finetune(options, pictures, resumed, str(checkpoint))
        states = [torch.load(folder / "weights.pth") for folder in (whole, resumed)]
        return {
            "steps": [first.step, second.step],
            "checkpoint": checkpoint.name,
            "files": sorted(path.name for path in whole.iterdir()),
            "devices": sorted({str(value.device) for value in _tensors(states[0])}),
            "panels": len(_panels(whole)),
            "same_weights": all(map(torch.equal, *map(_tensors, states))),
        }


def _finetune(options: Options, pictures: Index, folder: Path, resume: str) -> Trainer:
    config = pretended_cases.training_config(options, str(pictures.path), str(folder), resume)
    trainer = make_trainer(config, one_rank(CUDA))
    resumed = trainer.resume()
    assert (resumed is None) == (resume == "never")
    with Monitor(folder, True, trainer.step) as monitor, redirect_stdout(io.StringIO()):
        print_description(trainer, monitor)
        train(trainer, monitor)
        report(trainer, trainer.gather_skipped_ids(), folder, monitor)
    return trainer


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def _panels(folder: Path) -> list[Any]:
    """The pictures of perturbations in the run's TensorBoard files."""
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0}).Reload()
    return events.Images("perturbations")


def counted() -> Outcome:
    """What the device has counted."""
    return {
        "launches": counts.launches,
        "waits": counts.waits,
        "wait_sites": dict(counts.wait_sites.most_common()),
    }


@contextmanager
def substituted() -> Iterator[None]:
    """The pipeline with the substitutes, and with the settings of a run."""
    set_tf32(allowed=False)
    torch.set_num_threads(1)
    with (
        mock.patch("pipeline.training.step_runner.data_parallel", WithoutDdp),
        mock.patch("pipeline.training.trainer.TrainingLoader", CpuLoader),
        mock.patch("pipeline.evaluation.measure.Loader", CpuLoader),
    ):
        yield
