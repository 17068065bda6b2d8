"""Whether an image's result depends on its batch, for kernels, batch sizes, threads and shards."""

import argparse
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row
from benchmarks.data import in_new_process
from pipeline.config import DEFAULT_CONFIG, EvaluateConfig, EvaluationConfig
from pipeline.config.parse import parse
from pipeline.data import source
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader
from pipeline.evaluation import attack_space
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.self_check import largest_difference
from pipeline.models import build
from pipeline.models.attack_view import AttackView
from pipeline.runtime.reproducibility import images_at_once, use_reproducible_kernels

# Environment variables that choose kernels. Libraries read the variables when they are loaded.
DEFAULT_MODE = "MKL's default mode"
KERNELS: dict[str, dict[str, str]] = {
    "as a run": {},
    DEFAULT_MODE: {},
    "MKL AVX2": {"MKL_CBWR": "AVX2,STRICT"},
    "MKL AVX-512": {"MKL_CBWR": "AVX512,STRICT"},
    "MKL limited to AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ATen and oneDNN SSE": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
BATCH_SIZES, THREADS, SHARDS = (8, 32, 100), (1, 2), (1, 3, 5, 7)


def evaluate_in_shards(
    view: AttackView, config: EvaluationConfig, whole: Batch, num_shards: int
) -> Samples:
    """Evaluate images in shards, one after the other, in this process."""
    size = images_at_once(config.batch_size, torch.device("cpu"))
    parts = []
    for number in range(num_shards):
        positions = torch.arange(number, len(whole.rows), num_shards)
        evaluator = Evaluator(view, config, size, frozenset())
        for part in positions.split(size):
            batch = Batch(whole.images[part], whole.labels[part], whole.rows[part.numpy()])
            parts += [finished.samples for finished in evaluator.add_batch(batch)]
        parts += [finished.samples for finished in evaluator.drain()]
    return Samples.concatenate(parts)


def compare(
    model: str, weights: str | None, data: str | None, num_images: int, as_a_run: bool = True
) -> Row:
    """Evaluate the same images in many divisions, and compare the results with the first one's.

    Args:
        model: the value of model.name.
        weights: the value of model.weights.
        data: an index; None: the embedded digits.
        num_images: how many images to evaluate, evenly spaced in the index.
        as_a_run: use MKL's mode of conditional numerical reproducibility, as a run does.
    """
    if as_a_run:
        use_reproducible_kernels()
    config = _config(model, weights, data, num_images)
    index = source.open_index(config, "val")
    torch.manual_seed(0)
    net = build.build(config.model, config.model.num_classes or index.num_classes).eval()
    net = net.to(memory_format=torch.channels_last)
    images = _load(config, index)
    reference, num_differing, largest, self_check = None, 0, 0.0, 0.0
    for threads, batch_size in itertools.product(THREADS, BATCH_SIZES):
        torch.set_num_threads(threads)
        evaluation = replace(config.evaluation, batch_size=batch_size)
        view = attack_space.attack_view_of(net, config.data, evaluation, torch.device("cpu"))
        for num_shards in SHARDS:
            samples = evaluate_in_shards(view, evaluation, images, num_shards)
            reference = reference or samples
            norms, expected = samples.perturbation_norm, reference.perturbation_norm
            num_differing = max(num_differing, int(np.sum(norms != expected)))
            largest = max(largest, float(np.max(np.abs(norms / expected - 1))))
        size = images_at_once(batch_size, torch.device("cpu"))
        _, channels, height, width = images.images.shape
        shape = (channels, height, width)
        difference = largest_difference(view, shape, size, torch.device("cpu"))
        self_check = max(self_check, difference)
    return {
        "num_images": len(images.rows),
        "num_differing": num_differing,
        "largest_relative": largest,
        "self_check": self_check,
    }


def _load(config: EvaluateConfig, index: Index) -> Batch:
    """All images as one batch."""
    rows, cpu = index.subset(config.evaluation.num_images), torch.device("cpu")
    specs = evaluation_specs(index, rows, config.data, len(rows))
    threads = source.decoding_threads(config.data)
    (batch,) = Loader(index, specs, config.data, cpu, len(rows), threads)
    return batch


def _config(model: str, weights: str | None, data: str | None, num_images: int) -> EvaluateConfig:
    argv = ["--config", str(DEFAULT_CONFIG)] if data is None else ["--data.val", data]
    argv += ["--model.name", model, "--evaluation.num_images", str(num_images)]
    if weights:
        argv += ["--model.weights", weights]
    return parse(EvaluateConfig, "", argv)


@contextmanager
def _environment_variables(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in {name for kernels in KERNELS.values() for name in kernels}:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def with_kernels(kernels: str, *arguments: Any) -> Row:
    """`compare` in a new process, whose libraries read the variables of `KERNELS`."""
    with _environment_variables(KERNELS[kernels]):
        return in_new_process(compare, *arguments, kernels != DEFAULT_MODE)


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each choice of kernels; without --data, for MLP and LeNet on the digits."""
    nets = [options.model] if options.data else ["mlp", "lenet"]
    weights = options.weights if options.data else None
    rows = []
    for kernels, net in itertools.product(KERNELS, nets):
        result = with_kernels(kernels, net, weights, options.data, options.num_images or 400)
        rows.append({"name": kernels, "net": net, **result})
    return rows
