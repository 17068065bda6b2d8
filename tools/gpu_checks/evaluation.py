"""Evaluations of the same images: in this process again, in other batches, and how fast."""

import numpy as np
from torch import nn

from gpu_checks.check import Record, Setup
from gpu_checks.images import photos
from gpu_checks.nets import net_of
from gpu_checks.pixels import data_config
from pipeline.config import AttackConfig, EvaluationConfig, FgsConfig, RunConfig, RuntimeConfig
from pipeline.data.source import decoding_threads
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.samples import Samples
from pipeline.models import prepare
from pipeline.runtime.distributed import DistributedContext

BATCH_SIZES = (32, 64)
# Between kernels norms agree to about 1e-4 for most images (docs/reproducibility.md).
NORM_LIMIT = 1e-4


def measurement(
    setup: Setup, net: nn.Module, evaluation: EvaluationConfig, repeatable: bool = True
) -> Measurement:
    """An evaluation of a net on the photos, on the device, as pipeline/evaluate.py runs it."""
    data = data_config(setup)
    device = "cuda" if setup.on_gpu else "cpu"
    runtime = RuntimeConfig(device=device, deterministic="auto" if repeatable else False)
    config = RunConfig(data=data, evaluation=evaluation, runtime=runtime)
    ranks = DistributedContext.single(setup.device)
    net = prepare.move_net(net, runtime, setup.device)
    return Measurement(net, photos(setup), config, ranks, decoding_threads(data))


def equal_bits(setup: Setup, record: Record) -> None:
    """Samples of two evaluations, and of two batch sizes; with and without repeatable algorithms.

    Equal bits are claimed on CPUs, for any batch. On a GPU they are required of the same evaluation
    with runtime.deterministic; the rest is reported, and norms must agree.
    """
    for repeatable in (False, True) if setup.on_gpu else (True,):
        name = f"runtime.deterministic {'auto' if repeatable else 'false'}, "
        first, second, *others = (_samples(setup, size, repeatable) for size in (32, *BATCH_SIZES))
        required = repeatable or not setup.on_gpu
        compare(record, f"{name}the same again", second, first, required)
        for size, samples in zip(BATCH_SIZES[1:], others, strict=True):
            title = f"{name}batches of {size} instead of {BATCH_SIZES[0]}"
            compare(record, title, samples, first, required=not setup.on_gpu)


def _samples(setup: Setup, batch_size: int, repeatable: bool) -> Samples:
    net = net_of("squeezenet1_1", setup.size.side, setup.size.small)
    attack = AttackConfig(max_iterations=5)
    evaluation = EvaluationConfig(
        attack=attack, fgs=FgsConfig(eps=[0.01], search=False), batch_size=batch_size
    )
    run = measurement(setup, net, evaluation, repeatable)
    samples, _ = run.run(run.index.subset(setup.size.num_evaluated))
    return samples


def compare(record: Record, name: str, samples: Samples, expected: Samples, required: bool) -> None:
    """Compare all columns; if equality is not required, only norms must agree."""
    columns, expected_columns = samples.to_dict(), expected.to_dict()
    differing = [
        column
        for column, values in columns.items()
        if not np.array_equal(values, expected_columns[column], equal_nan=True)
    ]
    record.equal(f"{name}: columns that differ", differing, [], required=required)
    relative = np.abs(samples.perturbation_norm / expected.perturbation_norm - 1)
    record.note(f"{name}: images whose norm differs", int(np.sum(relative > 0)))
    record.note(f"{name}: largest relative difference", float(relative.max()))
    record.at_most(f"{name}: median relative difference", float(np.median(relative)), NORM_LIMIT)
