"""Training runs of the embedded demonstration: precisions, and an interrupted run."""

import math
import signal
from pathlib import Path

import torch

from gpu_checks.check import Record, Setup
from gpu_checks.processes import (
    FINETUNE,
    TORCHRUN,
    ProcessFailed,
    Started,
    metrics,
    run_options,
    start,
    wait_for_step,
    weights,
)
from pipeline.errors import STOPPED_EXIT_CODE

WEIGHT_LIMIT = 1e-6  # relative; equal bits are claimed on CPUs only


def training(setup: Setup, record: Record) -> None:
    """Short runs in each precision under torchrun: finite losses, and the loss scale of fp16."""
    started = {p: _start_if_new(setup, p) for p in setup.size.precisions}
    for precision, run in started.items():
        try:
            if run is not None:
                run.wait(setup.process_seconds)
        except ProcessFailed as error:
            record.fail(f"{precision}: ends", str(error))
        else:
            _report_run(record, precision, run_folder(setup, precision))


def _report_run(record: Record, precision: str, folder: Path) -> None:
    losses = metrics(folder, "train/loss")
    is_finite = bool(losses) and all(map(math.isfinite, losses))
    record.true(f"{precision}: losses finite", is_finite)
    record.note(f"{precision}: first and last loss", _ends(losses))
    record.note(f"{precision}: images/s", metrics(folder, "train/images_per_second")[-1])
    accuracies = metrics(folder, "evaluation/accuracy")
    record.note(f"{precision}: accuracy before and after", _ends(accuracies))
    scales = metrics(folder, "train/loss_scale")
    if precision == "fp16":
        record.true("fp16: loss scale recorded", bool(scales))
        record.note("fp16: first and last loss scale", _ends(scales))


def _ends(values: list[float]) -> str:
    return f"{values[0]:.5g}, {values[-1]:.5g}" if values else "none"


def run_folder(setup: Setup, name: str) -> Path:
    """The folder of a run; the name of an uninterrupted run is its precision."""
    return setup.folder / "runs" / name


def _start_if_new(setup: Setup, precision: str, name: str | None = None) -> Started | None:
    """Start the run in a precision; None if it has ended before. Runs share the device."""
    folder = run_folder(setup, name or precision)
    if (folder / "weights.pth").exists():
        return None
    options = run_options(setup, folder, "--runtime.precision", precision)
    return start(folder.with_suffix(".log"), *TORCHRUN, "--nproc_per_node=1", FINETUNE, *options)


def resume(setup: Setup, record: Record) -> None:
    """A run that SIGUSR2 stops and that is started again: the weights of the uninterrupted run."""
    others = [_start_if_new(setup, "fp32")]
    if setup.on_gpu:  # how much a run differs from its repetition, without an interruption
        others.append(_start_if_new(setup, "fp32", "repeated"))
    folder = run_folder(setup, "interrupted")
    options = run_options(setup, folder)
    run = start(folder.with_suffix(".log"), FINETUNE, *options)  # one process, without torchrun
    wait_for_step(run, folder, setup.size.interrupted_at, setup.process_seconds)
    run.process.send_signal(signal.SIGUSR2)
    run.wait(setup.process_seconds, STOPPED_EXIT_CODE)
    record.equal("exit code after SIGUSR2", run.process.returncode, STOPPED_EXIT_CODE)
    again = start(folder.with_suffix(".2.log"), FINETUNE, *options)
    output = again.wait(setup.process_seconds)
    record.true("resumed from a checkpoint", "resuming from" in output)
    for other in others:
        if other is not None:
            other.wait(setup.process_seconds)
    _compare_weights(setup, record)


def _compare_weights(setup: Setup, record: Record) -> None:
    expected = weights(run_folder(setup, "fp32"))
    measured = weights(run_folder(setup, "interrupted"))
    record.true("names of weights", measured.keys() == expected.keys())
    same = all(torch.equal(measured[name], value) for name, value in expected.items())
    record.true("weights: equal bits", same, required=not setup.on_gpu)
    limit = WEIGHT_LIMIT
    if setup.on_gpu:
        repeated = weights(run_folder(setup, "repeated"))
        unavoidable = relative_difference(repeated, expected)
        record.note("weights: relative difference of an uninterrupted repetition", unavoidable)
        # Kernels that add in any order make a run differ from its repetition; then an interruption
        # cannot be told from that, unless it changes much more.
        limit = max(limit, 10 * unavoidable)
    difference = relative_difference(measured, expected)
    record.at_most("weights: relative difference", difference, limit)


def relative_difference(
    measured: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> float:
    """The norm of the difference of all weights, relative to that of the weights."""
    pairs = [(measured[name].double(), value.double()) for name, value in expected.items()]
    difference = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    return (difference / torch.cat([b.flatten() for _, b in pairs]).norm()).item()
