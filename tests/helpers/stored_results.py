"""Results of evaluations and summaries of runs, written by the pipeline without running a net."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.config import AttackConfig, EvaluationConfig, FgsConfig, RuntimeConfig, Shard
from pipeline.evaluation import merge
from pipeline.evaluation.manifest import Identity, Manifest
from pipeline.evaluation.protocol import Preprocessing, evaluation_protocol
from pipeline.evaluation.samples import Example, Samples
from pipeline.evaluation.shard_results import ResultsFolder
from pipeline.evaluation.summary import write_outputs
from pipeline.runtime.distributed import DistributedContext

FGS_EPS = [0.1, 0.2]
ONE_RANK = DistributedContext.single(torch.device("cpu"))


def samples(rows: list[int], **changes: object) -> Samples:
    n = len(rows)
    columns = {
        "row": rows,
        "label": [0] * n,
        "prediction": [row % 2 for row in rows],
        "label_rank": [row % 7 for row in rows],
        "adversarial": [1] * n,
        "image_norm": [2.0] * n,
        "perturbation_norm": [row + 1.0 for row in rows],
        "steps": [3] * n,
        "flipped": [row != 1 for row in rows],
        "stuck": [False] * n,
        "fgs_correct": [[row % 2 == 0, row % 4 == 0] for row in rows],
        "fgs_eps": [0.1 * (row + 1) if row % 2 == 0 else 0.0 for row in rows],
    }
    columns |= changes
    num_methods = np.shape(columns["distances"])[1] if "distances" in columns else 0
    return Samples.from_dict(columns, len(FGS_EPS), num_methods)


def manifest(total: int = 6, attack: AttackConfig | None = None, **changes: object) -> Manifest:
    fgs = FgsConfig(eps=FGS_EPS, search=True)
    evaluation = EvaluationConfig(attack=attack or AttackConfig(), fgs=fgs)
    identity = Identity(
        model="net",
        weights="0",
        index="1",
        num_indexed=total,
        num_images=None,
        input=Preprocessing(
            mean=[0.5],
            crop=8,
            resize=8,
            interpolation="bilinear",
            channels=1,
            std=[0.25],
            decoder="cpu",
        ),
        protocol=evaluation_protocol(evaluation, RuntimeConfig(), 10),
    )
    about = {"index": "i.parquet", "class_names": ["zero", "one"]}
    return Manifest(replace(identity, **changes), about)


PROTOCOL = manifest().identity.protocol


def names(rows: list[int]) -> list[str]:
    return [f"image {row}" for row in rows]


def shard(folder: Path, number: int, of: int, rows: list[int], **changes: object) -> ResultsFolder:
    manifest_of_shard = changes.pop("manifest", manifest())
    store = ResultsFolder.start_or_resume(
        folder / "results", "auto", manifest_of_shard, Shard(number, of), ONE_RANK
    )
    with store.appender(0) as appender:
        appender.append(samples(rows, **changes), names(rows))
    return store


def finetuning(folder: Path, lam: float, c: float, accuracy: float, rho2: float | None) -> Path:
    """A run of finetune.py, as far as reports read it."""
    folder.mkdir(parents=True)
    history = [
        {"step": 0, "epoch": -2.0, "accuracy": 0.9, "rho2": 0.1},
        {"step": 10, "epoch": 0.0, "accuracy": 0.95, "rho2": 0.11},
        {"step": 20, "epoch": 1.0, "accuracy": accuracy, "rho2": rho2},
    ]
    definition = manifest().identity.protocol.to_dict() | {"fgs": None}
    summary = {"history": history, "definition": definition}
    summary |= {"before": history[0], "after": history[-1]}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {"model": {"name": "mlp"}, "regularizer": {"lam": lam, "c": c}}
    config |= {"data": {"val": "demo"}, "evaluation": {"num_images": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def evaluation(
    folder: Path, scale: float, attack: AttackConfig | None = None, **changes: Any
) -> Path:
    """A run of evaluate.py, merged."""
    rows = list(range(40))
    columns: dict[str, Any] = {
        "perturbation_norm": [scale * 0.01 * 1.1**row for row in rows],
        "fgs_eps": [scale * 0.1 * (row % 10) for row in rows],
    }
    store = shard(folder, 0, 1, rows, manifest=manifest(40, attack), **(columns | changes))
    with store.appender(0) as appender:
        picture = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
        appender.store_examples(
            [Example(k, picture, 0.1 * picture[:, ::-1].copy(), 0, 1) for k in (3, 9)]
        )
    write_outputs(folder, merge.merge_shards(folder))
    return folder


def evaluation_by_two(folder: Path, scale: float, **changes: Any) -> Path:
    """A run of evaluate.py by DeepFool and by DDN: DeepFool's distances are 1.25 times as large for
    even rows, DDN's are twice as large for odd ones, and infinite for row 3."""
    rows = np.arange(40)
    smallest = scale * 0.01 * 1.1**rows
    deepfool = np.where(rows % 2 == 0, 1.25, 1.0) * smallest
    ddn = np.where(rows % 2 == 1, 2.0, 1.0) * smallest
    ddn[3] = np.inf
    columns: dict[str, Any] = {
        "distances": np.stack([deepfool, ddn], axis=1),
        "perturbation_norm": smallest,
        "queries": np.full(40, 9),
        "winner": (rows + 1) % 2,
        "flipped": np.ones(40, bool),
    }
    return evaluation(folder, scale, AttackConfig(method="deepfool+ddn"), **(columns | changes))
