"""Speed: the benchmarks of tools/benchmark.py at several batch sizes, and a pruned evaluation."""

import argparse
import time
from collections.abc import Callable
from contextlib import closing

import benchmark as tool
from benchmarks import deepfool, regularizer, step
from benchmarks.common import Row, load_attack, training_loader
from benchmarks.loader import images_per_second
from gpu_checks.check import Record, Setup
from gpu_checks.evaluation import measurement
from gpu_checks.images import photos
from gpu_checks.nets import NUM_CLASSES, net_of, tiny
from pipeline.config import AttackConfig, EvaluationConfig

NUM_VALIDATION = 50_000  # images of ILSVRC-2012's validation set
NUM_LOADED_BATCHES = 20  # in a timing of the loader


def options_of(setup: Setup, what: str, num_images: int, precision: str) -> argparse.Namespace:
    """Options of tools/benchmark.py for a table, with random weights."""
    argv = [what, "--device", setup.device.type, "--model", setup.size.model]
    argv += ["--precision", precision, "--channels-last", "yes"]
    argv += ["--num-images", str(num_images), "--repeats", str(setup.size.repeats)]
    return tool.parser().parse_args(argv)


def step_table(setup: Setup, record: Record) -> None:
    """A whole step in bf16: images/s, and time relative to a plain step."""
    _by_batch_size(setup, record, "step", "bf16", step.benchmark)


def regularizer_table(setup: Setup, record: Record) -> None:
    """The regulariser's gradients in bf16: time and FLOPs relative to a plain step."""
    _by_batch_size(setup, record, "regularizer", "bf16", regularizer.benchmark)


def deepfool_table(setup: Setup, record: Record) -> None:
    """DeepFool in fp32, as evaluations run it: images/s of each variant."""
    _by_batch_size(setup, record, "deepfool", "fp32", _deepfool_rows)


def _by_batch_size(
    setup: Setup,
    record: Record,
    what: str,
    precision: str,
    benchmark: Callable[[argparse.Namespace], list[Row]],
) -> None:
    """One table for each batch size, until the time is over."""
    for size in setup.size.batch_sizes:
        if setup.seconds_left <= 0:
            record.note(f"{size} images", "not measured: the time of --minutes is over")
            continue
        rows = benchmark(options_of(setup, what, size, precision))
        title = f"{what}, {setup.size.model}, {precision}, {size} images"
        record.tables[title] = rows
        num_measured = sum("ratio" in row or "time_ratio" in row for row in rows)
        record.at_least(f"{title}: variants measured", num_measured, len(rows))


def _deepfool_rows(options: argparse.Namespace) -> list[Row]:
    """This project's variants; other libraries' would take most of the time."""
    view, images, labels = load_attack(options, default=0)
    attacks = {
        name: deepfool.our_attack(view, images, config) for name, config in deepfool.OURS.items()
    }
    return deepfool.measure(attacks, view, images, labels, options.repeats)


def loader_table(setup: Setup, record: Record) -> None:
    """Random crops of the photos, half precision on a GPU: images/s of the loader alone."""
    rows: list[Row] = []
    for size in setup.size.batch_sizes:
        loader = training_loader(photos(setup), size, setup.device, half=setup.on_gpu)
        with closing(iter(loader)) as batches:
            speed = images_per_second(batches, NUM_LOADED_BATCHES * size)
        rows.append({"name": f"batches of {size}", "images_per_second": speed})
        record.at_least(f"batches of {size}: images/s", speed, 1)
    record.tables["loader"] = rows


def rho2_speed(setup: Setup, record: Record) -> None:
    """Images/s of an evaluation with the pruned search, from JPEGs to samples.

    The time for ILSVRC's 50,000 validation images is extrapolated from a few hundred.
    """
    attack = AttackConfig(candidate_search="pruned", max_iterations=50)
    evaluation = EvaluationConfig(attack=attack, batch_size=max(setup.size.batch_sizes))
    name = setup.size.model
    net = tiny(NUM_CLASSES) if setup.size.small else net_of(name, setup.size.side, small=False)
    run = measurement(setup, net.eval(), evaluation)
    rows = run.index.subset(None)
    run.run(rows[: evaluation.batch_size])  # a warm-up
    begin = time.perf_counter()
    samples, skipped = run.run(rows)
    speed = len(rows) / (time.perf_counter() - begin)
    record.equal("images evaluated, left out", (len(samples), len(skipped)), (len(rows), 0))
    record.at_most("images without finite numbers", int(samples.nonfinite.sum()), 0)
    record.note("rho2 (random weights)", float(samples.ratio.mean()))
    record.note("mean iterations", float(samples.steps.mean()))
    record.note("images/s", speed)
    title = f"seconds for {NUM_VALIDATION:,} images, extrapolated from {len(rows)}"
    record.note(title, NUM_VALIDATION / speed)
