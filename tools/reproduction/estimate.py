"""Estimates the duration of runs on this machine, by timing a few steps on generated images.

In: planned runs. Out: seconds of each run, with ranks that share this machine's cores. The estimate
is rough: on real images the attack needs another number of iterations, and decoding is not counted.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.attacks.deepfool import deepfool
from pipeline.config import AttackConfig, FinetuneConfig, RunConfig
from pipeline.models import build, prepare
from pipeline.models.attack_view import AttackView
from pipeline.runtime import machine
from pipeline.training.objective import Objective
from reproduction import data
from reproduction.experiments import Experiment
from reproduction.plan import PlannedRun

_NUM_CLASSES = {"mnist": 10, "cifar10": 10, "ilsvrc": 1000}
_NUM_IMAGES = 8  # number of images timed first; a batch is timed only if they take less than _LONG
_LONG, _VERY_LONG = 1.0, 10.0  # seconds after which timing stops; after the first call
_DEEPFOOL_QUERIES = 20  # forward passes and gradients of an image, roughly
_START = 12.0  # seconds until the first step: imports, DALI, the index


class RuntimeEstimator:
    """Times each kind of step of the runs once."""

    def __init__(self, experiment: Experiment, folder: Path, ranks: int, max_parallel: int) -> None:
        """Read the size of the data set.

        Args:
            experiment: the experiment that the runs belong to.
            folder: the folder of the indices; without them, the data set's published size is used.
            ranks: number of ranks of each run.
            max_parallel: number of runs at the same time.
        """
        self.ranks, self.threads = ranks, threads(ranks, max_parallel)
        exists = (folder / data.TRAIN).exists() and (folder / data.VAL).exists()
        self.sizes = data.sizes(folder) if exists else data.SIZES[experiment.data]
        self.num_classes = _NUM_CLASSES[experiment.data]
        self._seconds_per_image: dict[str, float] = {}  # by kind of step

    def seconds(self, planned_runs: Sequence[PlannedRun]) -> dict[str, float]:
        """Estimated seconds of each run, by name."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return {
                planned.name: _START + self._seconds_of_one_rank(planned) / self.ranks
                for planned in planned_runs
            }
        finally:
            torch.set_num_threads(before)

    def _seconds_of_one_rank(self, planned: PlannedRun) -> float:
        config = planned.config
        if not isinstance(config, FinetuneConfig):
            num_train, num_val = self.sizes
            num_images = num_val if planned.module == "pipeline.evaluate" else num_train
            seconds = num_images * self._seconds_to_attack(config)
            seconds *= _queries(config.evaluation.attack) / _DEEPFOOL_QUERIES
            # The search of FGS takes six forward passes, DeepFool about eight.
            return 2 * seconds if config.evaluation.fgs.search else seconds
        train = config.train
        num_images = self.sizes[0]
        if config.data.train.endswith("joined.parquet"):  # images and their adversarial examples
            num_images *= 2
        seconds = train.pretrain_epochs * num_images * self._seconds_to_train(config, clean=True)
        seconds += train.epochs * num_images * self._seconds_to_train(config, clean=False)
        num_evaluations = 1 + math.ceil(train.epochs / config.evaluation.every_epochs)
        if train.pretrain_epochs > 0:
            num_evaluations += 1
        num_evaluated = config.evaluation.num_images or self.sizes[1]
        return seconds + num_evaluations * num_evaluated * self._seconds_to_attack(config)

    def _seconds_to_train(self, config: FinetuneConfig, clean: bool) -> float:
        """Seconds of training on one image."""
        method = "clean" if clean else config.objective.method
        kind = method
        if "deep_defense" in method:
            some = ", some layers" if config.regularizer.layers else ""
            kind = f"{method}, {config.regularizer.gradient}{some}"

        def make_step(num_images: int) -> Callable[[], object]:
            net = self._net(config)
            objective = Objective(net, replace(config, model=replace(config.model, weights=None)))
            images = _images(config, num_images)
            labels = torch.arange(num_images) % self.num_classes
            return lambda: objective(images, labels, use_methods=not clean).loss.backward()

        return self._time(kind, make_step, max(1, config.train.batch_size // self.ranks))

    def _seconds_to_attack(self, config: RunConfig) -> float:
        """Seconds of an evaluation for one image."""

        def make_step(num_images: int) -> Callable[[], object]:
            view, images = AttackView(self._net(config)), _images(config, num_images)
            return lambda: deepfool(view, images, config.evaluation.attack)

        return self._time("deepfool", make_step, 100)

    def _time(
        self, kind: str, make_step: Callable[[int], Callable[[], object]], batch_size: int
    ) -> float:
        """Seconds per image of a kind of step; timed at the first call."""
        if kind not in self._seconds_per_image:
            print(f"timing {kind}", file=sys.stderr, flush=True)
            num_images = min(_NUM_IMAGES, batch_size)
            seconds = _fastest(make_step(num_images))
            if seconds < _LONG and num_images < batch_size:
                num_images = batch_size
                seconds = _fastest(make_step(num_images))
            self._seconds_per_image[kind] = seconds / num_images
        return self._seconds_per_image[kind]

    def _net(self, config: RunConfig) -> torch.nn.Module:
        weights = config.model.weights
        if weights is not None and not Path(weights).exists():
            config = replace(config, model=replace(config.model, weights=None, new_head=False))
        with torch.random.fork_rng(devices=[]):
            net = build.build(config.model, self.num_classes)
        layout = prepare.memory_format(config.runtime, torch.device("cpu"))
        return net.to(memory_format=layout).eval()


def _queries(attack: AttackConfig) -> int:
    """Forward passes and gradients of an image, roughly."""
    deepfool = _DEEPFOOL_QUERIES * any("deepfool" in name for name in attack.methods)
    projections = 2 * attack.max_projections * (1 + attack.restarts)
    queries = {"deepfool": 0, "superdeepfool": projections}
    steps = 2 * attack.descent_steps  # also of another library's attack
    return deepfool + sum(queries.get(name, steps) for name in attack.methods)


def threads(ranks: int, max_parallel: int) -> int:
    """Threads of each rank, if parallel runs share this machine's cores."""
    return max(1, machine.cores() // (ranks * max_parallel))


def _fastest(step: Callable[[], object]) -> float:
    """Seconds of the fastest of at most three calls. The first is also a warm-up, and alone only if
    it takes very long."""
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < (_VERY_LONG if len(seconds) == 1 else _LONG):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _images(config: RunConfig, num_images: int) -> torch.Tensor:
    """Random images with the size and standard deviation of the net's input."""
    options = config.data
    std = torch.tensor(options.std).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, options.channels, options.crop_size, options.crop_size)
    return torch.randn(shape, generator=generator) * 0.25 / std
