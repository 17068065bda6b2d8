"""A whole evaluation (decoding, accuracy, FGS at five eps, DeepFool) beside the same with foolbox.

Both read the same batches of the same loader; foolbox runs its attacks one after another, as its
users do. Ours also finds eps_ref in a row of its own.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.config import AttackConfig, DataConfig, EvaluationConfig, FgsConfig, RunConfig
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader
from pipeline.data.source import decoding_threads
from pipeline.errors import UserError
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.evaluation.samples import Samples, summarize
from pipeline.runtime.distributed import DistributedContext

from .common import Row, device_of, in_turn, load_net, rates, runtime_of
from .deepfool import ITERATIONS, OVERSHOOT, RANGE, Q

EPS = [1e-4, 5e-4, 1e-3, 5e-3, 2e-2]
BATCH = 50

Numbers = dict[str, float]


def ours(
    options: argparse.Namespace, net: nn.Module, photos: index.Index, rows: np.ndarray, **how: Any
) -> Callable[[], Numbers]:
    """This project's evaluation."""
    search = how.pop("search", False)
    attack = AttackConfig(num_candidates=Q, max_iterations=ITERATIONS, overshoot=OVERSHOOT, **how)
    asked = EvaluationConfig(attack=attack, fgs=FgsConfig(eps=EPS, search=search), batch_size=BATCH)
    config = RunConfig(evaluation=asked, runtime=runtime_of(options))
    protocol = evaluation_protocol(asked, config.runtime, photos.num_classes)
    ranks = DistributedContext(0, 1, 0, 1, device_of(options))
    measurement = Measurement(net, photos, config, ranks, decoding_threads(config.data))

    def run() -> Numbers:
        samples, _ = measurement.run(rows)
        return _numbers(samples, protocol)

    return run


def _numbers(samples: Samples, protocol: dict[str, Any]) -> Numbers:
    summary = summarize(samples, protocol)
    after = {f"fgs {e['eps']:g}": e["accuracy"] for e in summary["fgs"]["accuracy"]}
    return {"accuracy": summary["accuracy"], "rho2": summary["rho2"], **after}


def theirs(
    options: argparse.Namespace, net: nn.Module, photos: index.Index, rows: np.ndarray
) -> Callable[[], Numbers] | None:
    """The same with foolbox, if it is installed."""
    try:
        from foolbox.attacks.deepfool import L2DeepFoolAttack
        from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        return None
    device, data = device_of(options), DataConfig()
    model = PyTorchModel(net, bounds=(-RANGE, RANGE), device=device)
    fgs = LinfFastGradientAttack(random_start=False)
    deepfool = L2DeepFoolAttack(steps=ITERATIONS, candidates=Q, overshoot=OVERSHOOT, loss="logits")

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
    """A row a variant: images/s, their ratio to foolbox's, and what was found."""
    if options.data is None:
        raise UserError("evaluation decodes images: give an index with --data")
    photos = index.read(options.data, option="--data")
    rows = photos.subset(options.num_images or 100)
    net = load_net(options).requires_grad_(requires_grad=False)
    known = (options, net, photos, rows)
    peer = theirs(*known)
    variants = {"foolbox": peer} if peer is not None else {}
    variants |= {
        "this project": ours(*known),
        "pruned": ours(*known, candidate_search="pruned"),
        "and eps_ref": ours(*known, search=True),
    }
    found = {name: run() for name, run in variants.items()}  # also a warm-up
    return rates(in_turn(variants, options.repeats, device_of(options)), len(rows), found)
