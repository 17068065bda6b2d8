"""How long units will take here: a few steps of each kind are timed, on generated images.

In: units. Out: seconds of each, as if it ran alone on this machine in one rank. Rough: the attack
takes other numbers of iterations on generated images, and decoding is not counted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import models, setup
from pipeline.config import FinetuneConfig, RunConfig
from pipeline.deepfool import deepfool
from pipeline.objective import Objective
from pipeline.view import AttackView
from reproduction import data
from reproduction.experiments import Experiment
from reproduction.plan import Unit

_CLASSES = {"mnist": 10, "cifar10": 10, "ilsvrc": 1000}
_LARGE, _FEW = 64, 8  # pixels of a side from where only so many images are timed
_START = 12.0  # seconds until the first step: imports, DALI, the index


class Clock:
    """Times what units are made of, each kind once."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        """Look at the data set, whose nominal size counts where it is not there yet."""
        there = (folder / data.TRAIN).exists() and (folder / data.VAL).exists()
        self.sizes = data.sizes(folder) if there else data.SIZES[experiment.data]
        self.classes = _CLASSES[experiment.data]
        self.known: dict[str, float] = {}

    def seconds(self, units: Sequence[Unit]) -> dict[str, float]:
        """Of each unit, by name."""
        return {unit.name: _START + self._of(unit) for unit in units}

    def _of(self, unit: Unit) -> float:
        config = unit.config
        if not isinstance(config, FinetuneConfig):
            number = self.sizes[unit.module == "pipeline.evaluate"]
            # FGS's search takes six forwards, of the eight or so that DeepFool takes.
            return number * self._attacked(config) * (2.0 if config.evaluation.fgs.search else 1.0)
        train = config.train
        images = self.sizes[0] * (2 if config.data.train.endswith("joined.parquet") else 1)
        trained = train.clean_epochs * images * self._trained(config, clean=True)
        trained += train.epochs * images * self._trained(config, clean=False)
        count = config.evaluation.num_images or self.sizes[1]
        evaluations = 1 + (train.clean_epochs > 0) + train.epochs / config.evaluation.every_epochs
        return trained + evaluations * count * self._attacked(config)

    def _trained(self, config: FinetuneConfig, clean: bool) -> float:
        """Seconds a trained image."""
        method = "clean" if clean else config.objective.method
        kind = f"{method} {config.regularizer.gradient} {bool(config.regularizer.layers)}"

        def once() -> Callable[[], None]:
            net = self._net(config)
            objective = Objective(net, replace(config, model=replace(config.model, weights=None)))
            images = _images(config, config.train.batch_size)
            labels = torch.arange(len(images)) % self.classes
            return lambda: objective(images, labels, not clean).loss.backward()

        return self._timed(kind, once, len(_images(config, config.train.batch_size)))

    def _attacked(self, config: RunConfig) -> float:
        """Seconds an evaluated image."""

        def once() -> Callable[[], None]:
            view, images = AttackView(self._net(config)), _images(config, 100)
            return lambda: deepfool(view, images, config.evaluation.attack)

        return self._timed("deepfool", once, len(_images(config, 100)))

    def _timed(self, kind: str, make: Callable[[], Callable[[], None]], images: int) -> float:
        if kind not in self.known:
            step = make()
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                step()
                times.append(time.perf_counter() - begin)
            self.known[kind] = min(times) / images
        return self.known[kind]

    def _net(self, config: RunConfig) -> torch.nn.Module:
        weights = config.model.weights
        if weights is not None and not Path(weights).exists():
            config = replace(config, model=replace(config.model, weights=None))
        with torch.random.fork_rng(devices=[]):
            net = models.build(config.model, self.classes)
        layout = setup.memory_format(config.runtime, torch.device("cpu"))
        return net.to(memory_format=layout).eval()


def _images(config: RunConfig, number: int) -> torch.Tensor:
    """Of the size and the spread of the net's input; few of them if they are large."""
    options = config.data
    number = min(number, _FEW) if options.crop > _LARGE else number
    std = torch.tensor(options.std).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    shape = (number, options.channels, options.crop, options.crop)
    return torch.randn(shape, generator=generator) * 0.25 / std
