"""Accuracy and rho2 of a net over an index, sharded over ranks, each image exactly once.

In: a net, an index, the rows still to do. Out: `Samples` of this rank. Ranks do not talk to one
another here; what they found is joined by row afterwards.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.config import AttackConfig, EvaluateConfig
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader
from pipeline.deepfool import Perturbation, deepfool
from pipeline.distributed import Ranks
from pipeline.results import Samples, check_complete
from pipeline.view import AttackView

Watcher = Callable[[Batch, Perturbation, Samples], None]

# Options of the data section that decide what the network's input is.
INPUT_OPTIONS = ("crop", "resize", "channels", "mean", "std")

LINEARISED_AT = {
    "reached": "x + sum of steps, without overshoot",
    "tested": "the point where the class was tested, with overshoot",
}


def definition(attack: AttackConfig, tf32: bool = False) -> dict[str, Any]:
    """What this rho2 means; goes beside every number."""
    return {
        "rho2": "mean of ||dx||_2 / ||x||_2 over all samples, DeepFool from the predicted class",
        "num_candidates": attack.num_candidates,
        "max_iterations": attack.max_iterations,
        "overshoot": attack.overshoot,
        "classes": attack.classes,
        "visit": attack.visit if attack.visit == "all" else f"lazy, safety {attack.safety:g}",
        "linearised_at": LINEARISED_AT[attack.linearize_at],
        "space": "network input, after normalisation",
        "precision": "tf32" if tf32 else "fp32",
    }


def fingerprint(net: nn.Module) -> str:
    """Short hash of a net's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def measure(
    net: nn.Module,
    index: Index,
    rows: np.ndarray,
    config: EvaluateConfig,
    ranks: Ranks,
    threads: int,
    watch: Watcher = lambda *_: None,
) -> tuple[Samples, list[str]]:
    """Evaluate this rank's share of ``rows``.

    Args:
        net: from images to logits.
        index: of the images.
        rows: rows of the index to evaluate, the same on every rank.
        config: data, evaluation and runtime sections are read.
        ranks: this rank and its device.
        threads: for decoding.
        watch: called after each batch with it, what DeepFool found, and its results.

    Returns:
        This rank's results, and the ids of images that did not decode and were left out.
    """
    share = rows[ranks.rank :: ranks.size]
    size = config.evaluation.batch_size
    view = AttackView(net)
    specs = evaluation_specs(index, share, config.data, size)
    loader = Loader(index, specs, config.data, ranks.device, size, threads)
    parts = [Samples.empty()]
    for batch in loader if len(share) else ():
        found = deepfool(view, batch.images, config.evaluation.attack)
        parts.append(_samples(batch, found))
        watch(batch, found, parts[-1])
    return Samples.concat(parts), loader.skipped


def _samples(batch: Batch, found: Perturbation) -> Samples:
    """One transfer from the device for all columns."""
    columns = [
        batch.labels,
        found.clean,
        found.iterations,
        found.flipped,
        batch.images.flatten(1).double().norm(dim=1),
        found.delta.flatten(1).double().norm(dim=1),
    ]
    label, predicted, steps, flipped, image, delta = (
        torch.stack([column.double() for column in columns]).cpu().numpy()
    )
    return Samples(
        row=batch.rows,
        label=label.astype(np.int64),
        prediction=predicted.astype(np.int64),
        image_norm=image,
        perturbation_norm=delta,
        steps=steps.astype(np.int64),
        flipped=flipped.astype(bool),
    )


def join(
    mine: Samples, skipped: list[str], rows: np.ndarray, ranks: Ranks
) -> tuple[Samples, list[str]]:
    """Join the ranks' results and check that each row was evaluated exactly once."""
    parts = ranks.gather((mine, skipped))
    samples = Samples.concat(part for part, _ in parts)
    left_out = sorted(name for _, names in parts for name in names)
    check_complete(samples, rows, len(left_out))
    return samples, left_out
