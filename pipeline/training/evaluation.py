"""Evaluations during training: the samples of all ranks, with progress and example pictures."""

from pipeline.evaluation import attack_space, contact_sheet
from pipeline.evaluation.evaluator import Finished
from pipeline.evaluation.measure import Measurement, gather_samples
from pipeline.evaluation.samples import Example, Samples
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.signals import StopRequest


def evaluate_held_out(
    measurement: Measurement,
    num_examples: int,
    stop: StopRequest | None,
    monitor: Monitor,
    step: int,
    total_steps: int,
) -> tuple[Samples, list[int]]:
    """Evaluate the net on the held-out images; all ranks must call this.

    Args:
        measurement: the net and the index of the held-out images.
        num_examples: largest number of images of this rank whose perturbations are shown.
        stop: checked after each batch.
        monitor: shows the progress and the perturbations.
        step: optimiser steps done.
        total_steps: number of optimiser steps of the run.

    Returns:
        The results of all ranks, and the rows of images that were not decoded.

    Raises:
        Stopped: on every rank, if one of them has received a signal to stop.
    """
    config, ranks, index = measurement.config, measurement.ranks, measurement.index
    rows = index.subset(config.evaluation.num_images)
    own_rows = rows[ranks.rank :: ranks.world_size]
    example_rows = frozenset(own_rows[:num_examples].tolist())
    examples: list[Example] = []
    monitor.start_progress("evaluating", len(rows), at=f"step {step}/{total_steps}")

    def report(finished: Finished, _skipped: list[int]) -> None:
        examples.extend(finished.examples)
        monitor.advance(len(finished.samples) * ranks.world_size)

    own_samples, own_skipped = measurement.run(rows, report, example_rows, stop)
    if monitor.active and examples:
        space = attack_space.data_options(config.data, config.evaluation)
        sheet = contact_sheet.draw(sorted(examples), index.class_names, space)
        monitor.figure(step, "perturbations", sheet)
    return gather_samples(own_samples, own_skipped, rows, ranks)
