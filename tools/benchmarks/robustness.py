"""What each way of training costs, and what it gives: the runs of tools/reproduce.py.

For each Deep Defense run the FLOPs and seconds of a step are measured, at the first and at the last
weights, relative to a step with the cross-entropy only. The mean of the two, times the epochs, is
the run's cost in plain epochs. The authors' algorithm has the gradient of
`deep_defense_exact`, so it has that run's numbers at its own price.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import Row, device_of, in_turn, medians
from benchmarks.counters import counted
from benchmarks.regularizer import Loss, authors
from pipeline.config import FinetuneConfig, parse
from pipeline.data import index, source
from pipeline.data.batches import TrainingPlan
from pipeline.data.loader import Batch, Loader
from pipeline.errors import UserError
from pipeline.models import build, prepare
from pipeline.regularizer.sampling import uniform_numbers
from pipeline.reports import runs
from pipeline.training.objective import Objective
from reproduction.experiments import DISTANCES

AUTHORS, EXACT = "authors' algorithm", "deep_defense_exact"
NUM_BATCHES = 3
REMEDY = "the --output of tools/reproduce.py EXPERIMENT --data DIR --attack deepfool+superdeepfool"
PLAIN, OWN = "plain", "own"


class _Cost(NamedTuple):
    """Of a step, in plain steps."""

    flops: float
    time: float


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each Deep Defense method in --runs, the means over the seeds.

    Raises:
        UserError: --runs is missing, or has no runs with distances.
    """
    if options.runs is None:
        raise UserError(f"robustness needs --runs: {REMEDY}")
    for weights in sorted(Path(options.runs).glob("seed*/deep_defense*/weights.pth")):
        if not (weights.parent / DISTANCES / "summary.json").exists():
            print(f"left out {weights.parent}: it has no {DISTANCES}", file=sys.stderr)
    rows: dict[str, list[Row]] = {}
    for folder in sorted(Path(options.runs).glob(f"seed*/deep_defense*/{DISTANCES}/summary.json")):
        for row in _rows_of_run(folder.parent.parent, options):
            rows.setdefault(row["name"], []).append(row)
    if not rows:
        raise UserError(
            f"--runs {options.runs} has no seed*/deep_defense*/{DISTANCES}/summary.json; "
            f"it is {REMEDY}"
        )
    means = [
        {
            "name": name,
            "runs": len(same),
            **{key: statistics.mean(row[key] for row in same) for key in same[0] if key != "name"},
        }
        for name, same in rows.items()
    ]
    most = max(row["flops_epochs"] for row in means)
    return [row | {"share_of_highest": row["flops_epochs"] / most} for row in means]


def _rows_of_run(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The run's row, and that of the authors' algorithm for the run that has its gradient."""
    config = parse.parse(FinetuneConfig, None, ["--config", str(folder / "config.yaml")])
    if config.objective.method != "deep_defense":
        return []  # another method's steps are in its cost
    results = runs.read(folder / DISTANCES).evaluation.statistics
    if results.diagnostics is None or "deepfool" not in results.diagnostics.methods:
        raise UserError(
            f"{folder / DISTANCES} is not by deepfool and another attack; remove it, and run "
            "tools/reproduce.py with --attack deepfool+superdeepfool"
        )
    names = {OWN: folder.name, AUTHORS: AUTHORS} if folder.name == EXACT else {OWN: folder.name}
    photos = index.read(str(config.data.train), option="data.train")
    batches = _batches(config, photos, device_of(options))
    of_weights = [
        _costs(
            _objective(config, weights, photos.num_classes, batches[0]),
            batches,
            tuple(names),
            options,
        )
        for weights in (config.model.weights, str(folder / "weights.pth"))
    ]
    rows = []
    for key, name in names.items():
        flops = statistics.mean(costs[key].flops for costs in of_weights)
        seconds = statistics.mean(costs[key].time for costs in of_weights)
        rows.append(
            {
                "name": name,
                "epochs": config.train.epochs,
                "accuracy": 100 * results.accuracy,
                "deepfool": results.diagnostics.methods["deepfool"]["mean"],
                "best": results.rho,
                "flops_step": flops,
                "time_step": seconds,
                "flops_epochs": flops * config.train.epochs,
                "time_epochs": seconds * config.train.epochs,
            }
        )
    return rows


def _batches(config: FinetuneConfig, photos: index.Index, device: torch.device) -> list[Batch]:
    """The first batches of the run."""
    plan = TrainingPlan(photos, config.data, config.train, 0, 1)
    threads = source.decoding_threads(config.data)
    specs = plan.specs(0, NUM_BATCHES)
    return list(Loader(photos, specs, config.data, device, plan.pass_size, threads))


def _objective(
    config: FinetuneConfig, weights: str | None, num_classes: int, first: Batch
) -> Objective:
    """The objective of the run with these weights; it measures a part of the misclassified images
    if the run does."""
    device = first.images.device
    net = build.build(replace(config.model, weights=weights), num_classes)
    objective = Objective(prepare.move_net(net, config.runtime, device), config)
    losses = objective(first.images, first.labels, use_methods=True)
    objective.typical_ratio = losses.ratio[losses.correct].mean().item()
    objective.uniform = torch.from_numpy(uniform_numbers(0, 0, len(first.images))).to(device)
    return objective


def _costs(
    objective: Objective, batches: list[Batch], names: tuple[str, ...], options: argparse.Namespace
) -> dict[str, _Cost]:
    """The cost of a step of the run (`OWN`), and of the authors' algorithm (`AUTHORS`)."""

    def loss(images: Tensor, labels: Tensor, *, use_methods: bool) -> Tensor:
        return objective(images, labels, use_methods=use_methods).loss

    losses: dict[str, Loss] = {
        PLAIN: partial(loss, use_methods=False),
        OWN: partial(loss, use_methods=True),
        AUTHORS: partial(authors, objective.view.forward_current_mode),
    }
    steps = {
        name: partial(_steps, objective.net, losses[name], batches) for name in (PLAIN, *names)
    }
    flops = {name: counted(run)[1] for name, run in steps.items()}
    typical = medians(in_turn(steps, options.repeats, device_of(options)))
    return {
        name: _Cost(flops[name] / flops[PLAIN], typical[name] / typical[PLAIN]) for name in names
    }


def _steps(net: nn.Module, loss: Loss, batches: list[Batch]) -> None:
    for batch in batches:
        net.zero_grad()
        loss(batch.images, batch.labels).backward()
