"""How long units will take here: a few steps of each kind are timed, on generated images.

In: units. Out: seconds of each, in ranks that share this machine's cores. Rough: the attack takes
other numbers of iterations on generated images, and decoding is not counted.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.attacks.deepfool import deepfool
from pipeline.config import FinetuneConfig, RunConfig
from pipeline.models import build, prepare
from pipeline.models.attack_view import AttackView
from pipeline.runtime import machine
from pipeline.training.objective import Objective
from reproduction import data
from reproduction.experiments import Experiment
from reproduction.plan import PlannedRun

_CLASSES = {"mnist": 10, "cifar10": 10, "ilsvrc": 1000}
# So many images, and one time, tell enough where they take longer than this, s.
_FEW, _SLOW = 8, 1.0
_START = 12.0  # seconds until the first step: imports, DALI, the index


class RuntimeEstimator:
    """Times what units are made of, each kind once."""

    def __init__(self, experiment: Experiment, folder: Path, ranks: int, at_once: int) -> None:
        """Look at the data set, whose nominal size counts where it is not there yet."""
        self.ranks, self.threads = ranks, threads(ranks, at_once)
        there = (folder / data.TRAIN).exists() and (folder / data.VAL).exists()
        self.sizes = data.sizes(folder) if there else data.SIZES[experiment.data]
        self.classes = _CLASSES[experiment.data]
        self.known: dict[str, float] = {}

    def seconds(self, units: Sequence[PlannedRun]) -> dict[str, float]:
        """Of each unit, by name."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return {unit.name: _START + self._of(unit) / self.ranks for unit in units}
        finally:
            torch.set_num_threads(before)

    def _of(self, unit: PlannedRun) -> float:
        config = unit.config
        if not isinstance(config, FinetuneConfig):
            number = self.sizes[unit.module == "pipeline.evaluate"]
            # FGS's search takes six forwards, of the eight or so that DeepFool takes.
            return number * self._attacked(config) * (2.0 if config.evaluation.fgs.search else 1.0)
        train = config.train
        images = self.sizes[0] * (2 if config.data.train.endswith("joined.parquet") else 1)
        trained = train.pretrain_epochs * images * self._trained(config, clean=True)
        trained += train.epochs * images * self._trained(config, clean=False)
        count = config.evaluation.num_images or self.sizes[1]
        evaluations = 1 + (train.pretrain_epochs > 0)
        evaluations += math.ceil(train.epochs / config.evaluation.every_epochs)
        return trained + evaluations * count * self._attacked(config)

    def _trained(self, config: FinetuneConfig, clean: bool) -> float:
        """Seconds a trained image."""
        method = "clean" if clean else config.objective.method
        kind = f"{method} {config.regularizer.gradient} {bool(config.regularizer.layers)}"

        def once(number: int) -> Callable[[], object]:
            net = self._net(config)
            objective = Objective(net, replace(config, model=replace(config.model, weights=None)))
            images = _images(config, number)
            labels = torch.arange(number) % self.classes
            return lambda: objective(images, labels, use_methods=not clean).loss.backward()

        return self._timed(kind, once, max(1, config.train.batch_size // self.ranks))

    def _attacked(self, config: RunConfig) -> float:
        """Seconds an evaluated image."""

        def once(number: int) -> Callable[[], object]:
            view, images = AttackView(self._net(config)), _images(config, number)
            return lambda: deepfool(view, images, config.evaluation.attack)

        return self._timed("deepfool", once, 100)

    def _timed(self, kind: str, make: Callable[[int], Callable[[], object]], images: int) -> float:
        if kind not in self.known:
            number = min(_FEW, images)
            print(f"timing {kind}", file=sys.stderr, flush=True)
            seconds = _least(make(number))
            if seconds < _SLOW and number < images:
                number = images
                seconds = _least(make(number))
            self.known[kind] = seconds / number
        return self.known[kind]

    def _net(self, config: RunConfig) -> torch.nn.Module:
        weights = config.model.weights
        if weights is not None and not Path(weights).exists():
            config = replace(config, model=replace(config.model, weights=None, new_head=False))
        with torch.random.fork_rng(devices=[]):
            net = build.build(config.model, self.classes)
        return prepare.move_net(net, config.runtime, torch.device("cpu")).eval()


def threads(ranks: int, at_once: int) -> int:
    """Of each rank, so that runs side by side share this machine's cores."""
    return max(1, machine.cores() // (ranks * at_once))


def _least(step: Callable[[], object]) -> float:
    """Seconds of the fastest of three; the first one also warms up."""
    took: list[float] = []
    while len(took) < 3 and sum(took) < _SLOW:
        begin = time.perf_counter()
        step()
        took.append(time.perf_counter() - begin)
    return min(took)


def _images(config: RunConfig, number: int) -> torch.Tensor:
    """Of the size and the spread of the net's input."""
    options = config.data
    std = torch.tensor(options.std).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    shape = (number, options.channels, options.crop_size, options.crop_size)
    return torch.randn(shape, generator=generator) * 0.25 / std
