"""A whole evaluation (decoding, accuracy, FGS at five eps, DeepFool) compared with foolbox.

Both use the same loader and batches. foolbox runs its attacks one after another, as in its
examples. One more row is this project's evaluation with the search for eps_ref.
"""

import argparse
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn

from benchmarks.common import (
    EVALUATION_ITERATIONS,
    NUM_CANDIDATES,
    OVERSHOOT,
    Row,
    device_of,
    in_turn,
    load_net,
    rates,
    runtime_of,
)
from benchmarks.deepfool import RANGE
from pipeline.config import AttackConfig, DataConfig, EvaluationConfig, FgsConfig, RunConfig
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader
from pipeline.data.source import decoding_threads
from pipeline.errors import UserError
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.protocol import Protocol, evaluation_protocol
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.statistics import summarize
from pipeline.runtime.distributed import DistributedContext

EPS = [1e-4, 5e-4, 1e-3, 5e-3, 2e-2]
BATCH = 50

Numbers = dict[str, float]


def ours(
    options: argparse.Namespace,
    net: nn.Module,
    photos: index.Index,
    rows: np.ndarray,
    candidate_search: Literal["exhaustive", "pruned"] = "exhaustive",
    search: bool = False,
) -> Callable[[], Numbers]:
    """This project's evaluation.

    Args:
        options: the command line.
        net: computes logits of images.
        photos: index of the images.
        rows: rows of the index to evaluate.
        candidate_search: the value of evaluation.attack.candidate_search.
        search: the value of evaluation.fgs.search.
    """
    attack = AttackConfig(
        num_candidates=NUM_CANDIDATES,
        max_iterations=EVALUATION_ITERATIONS,
        overshoot=OVERSHOOT,
        candidate_search=candidate_search,
    )
    fgs = FgsConfig(eps=EPS, search=search)
    evaluation = EvaluationConfig(attack=attack, fgs=fgs, batch_size=BATCH)
    config = RunConfig(evaluation=evaluation, runtime=runtime_of(options))
    protocol = evaluation_protocol(evaluation, config.runtime, photos.num_classes)
    ranks = DistributedContext.single(device_of(options))
    measurement = Measurement(net, photos, config, ranks, decoding_threads(config.data))

    def run() -> Numbers:
        samples, _ = measurement.run(rows)
        return _numbers(samples, protocol)

    return run


def _numbers(samples: Samples, protocol: Protocol) -> Numbers:
    statistics = summarize(samples, protocol)
    assert statistics.fgs is not None
    assert statistics.rho is not None
    after_fgs = {f"fgs {entry.eps:g}": entry.accuracy for entry in statistics.fgs.accuracy}
    return {"accuracy": statistics.accuracy, "rho2": statistics.rho, **after_fgs}


def foolbox_evaluation(
    options: argparse.Namespace, net: nn.Module, photos: index.Index, rows: np.ndarray
) -> Callable[[], Numbers] | None:
    """The same evaluation with foolbox; None if it is not installed."""
    try:
        from foolbox.attacks.deepfool import L2DeepFoolAttack
        from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        return None
    device, data = device_of(options), DataConfig()
    model = PyTorchModel(net, bounds=(-RANGE, RANGE), device=device)
    fgs = LinfFastGradientAttack(random_start=False)
    deepfool = L2DeepFoolAttack(
        steps=EVALUATION_ITERATIONS, candidates=NUM_CANDIDATES, overshoot=OVERSHOOT, loss="logits"
    )

    def run() -> Numbers:
        specs = evaluation_specs(photos, rows, data, BATCH)
        sums = np.zeros(2 + len(EPS))
        for batch in Loader(photos, specs, data, device, BATCH, decoding_threads(data)):
            x, y = batch.images.clone(), batch.labels
            with torch.no_grad():
                clean = net(x).argmax(dim=1)
            after = []
            for eps in EPS:
                perturbed = fgs.run(model, x, y, epsilon=eps)
                with torch.no_grad():
                    after.append((net(perturbed).argmax(dim=1) == y).sum().item())
            delta = deepfool.run(model, x, clean) - x
            ratio = delta.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
            sums += [(clean == y).sum().item(), ratio.sum().item(), *after]
        names = ("accuracy", "rho2", *(f"fgs {eps:g}" for eps in EPS))
        return dict(zip(names, (sums / len(rows)).tolist(), strict=True))

    return run


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each variant: images/s, their ratio to foolbox's, and the results."""
    if options.data is None:
        raise UserError("the benchmark evaluation decodes images: give an index with --data")
    photos = index.read(options.data, option="--data")
    rows = photos.subset(options.num_images or 100)
    net = load_net(options).requires_grad_(requires_grad=False)
    variants: dict[str, Callable[[], Numbers]] = {}
    foolbox = foolbox_evaluation(options, net, photos, rows)
    if foolbox is not None:
        variants["foolbox"] = foolbox
    variants |= {
        "this project": ours(options, net, photos, rows),
        "pruned": ours(options, net, photos, rows, candidate_search="pruned"),
        "and eps_ref": ours(options, net, photos, rows, search=True),
    }
    results = {name: run() for name, run in variants.items()}  # also a warm-up
    return rates(in_turn(variants, options.repeats, device_of(options)), len(rows), results)
