"""The runs of an experiment, and the runs that each of them needs first.

In: an experiment, seeds, a folder. Out: `PlannedRun`s in an order in which they can run.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from launchers.submit import SUBMITTED, with_absolute_paths
from pipeline.config import (
    CONFIGS,
    EvaluateConfig,
    FgsConfig,
    FinetuneConfig,
    RunConfig,
    parse,
)
from pipeline.errors import UserError
from pipeline.evaluation.resolve import resolve
from reproduction import data, experiments
from reproduction.experiments import (
    DISTANCES,
    EVALUATION,
    EXAMPLES,
    REFERENCE,
    Experiment,
    Method,
)

_FINETUNE, SUMMARY = "pipeline.finetune", "summary.json"
# The runs of a sweep are evaluated at their end only.
_EVALUATE_AT_THE_END = ("--evaluation.every_epochs", "1000")
DISTANCE_ITERATIONS = 50  # largest number of DeepFool's iterations in `DISTANCES`; the paper's: 5
# Options that do not change a run's results; and options that do not change a reference's results.
_WITHOUT_EFFECT = ("resume", "dry_run", "runtime", "data.num_threads", "evaluation.batch_size")
_WITHOUT_EFFECT_ON_REFERENCE = ("regularizer", "objective", "schedule")


@dataclass(frozen=True)
class PlannedRun:
    """One run of an entry point."""

    name: str  # its folder in OUTPUT: seed0/deep_defense
    module: str  # the entry point
    config: RunConfig  # with absolute paths
    result: str  # the file in its folder that it writes last
    needs: tuple["PlannedRun", ...] = ()  # runs that must have ended before this one starts

    @property
    def folder(self) -> Path:
        """The folder that it writes to."""
        return self.config.folder

    @cached_property
    def depth(self) -> int:
        """Length of the longest chain of runs before it."""
        return 1 + max((needed.depth for needed in self.needs), default=-1)

    def done(self) -> bool:
        """Whether it has ended with these options.

        Raises:
            UserError: its folder contains a run with other options.
        """
        path = self.folder / SUBMITTED
        if not path.exists():
            return False
        free, config = _WITHOUT_EFFECT, self.config
        if isinstance(config, FinetuneConfig) and config.train.epochs == 0:
            free += _WITHOUT_EFFECT_ON_REFERENCE
        try:
            changed = parse.stored_differences(yaml.safe_load(path.read_text()), config, free)
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            raise UserError(f"{path} is damaged; remove {self.folder}") from None
        if changed:
            raise UserError(
                f"{self.folder} was made with other options ({'; '.join(changed)}); give another "
                "--output, or remove it"
            )
        return (self.folder / self.result).exists()


class Planner:
    """Collects the runs of an experiment without duplicates."""

    def __init__(
        self,
        experiment: Experiment,
        output: Path,
        options: Sequence[str] = (),
        weights: str | None = None,
        attack: str | None = None,
    ) -> None:
        """Start without runs.

        Args:
            experiment: the experiment.
            output: folder of all runs.
            options: command line for every fine-tuning; it overrides the experiment's YAML file.
            weights: weights of the reference, instead of the experiment's own.
            attack: `AttackConfig.method` of a second evaluation of each net; None: there is none.
        """
        self.weights = weights or experiment.weights
        self.attack = attack
        self.experiment, self.output = experiment, output.absolute()
        self.options = list(options)
        self.data = self.output / "data"
        self.planned: dict[str, PlannedRun] = {}

    def table(self, seeds: Sequence[int], names: Sequence[str]) -> list[PlannedRun]:
        """The runs of the table: of the reference and of some methods, for each seed."""
        methods = [m for m in self.experiment.methods if m.name in names]
        for seed in seeds:
            self._evaluations(seed, REFERENCE)
            for method in methods:
                self._finetuning(seed, method)
                self._evaluations(seed, method.name)
        return self.ordered()

    def histories(self, seed: int, names: Sequence[str]) -> list[PlannedRun]:
        """The fine-tunings that Figure 2 shows."""
        for method in self.experiment.methods:
            if method.name in names:
                self._finetuning(seed, method)
        return self.ordered()

    def sweep(
        self, seeds: Sequence[int], number: int, points: Sequence[str] = ("*",)
    ) -> list[PlannedRun]:
        """Figure 3 (lambda by c) or Figure 4 (layers by c), for each seed.

        Args:
            seeds: of the fine-tunings.
            number: 3 or 4.
            points: names of points, as "lam=15,c=5" or "conv1,c=5", or patterns with * and ?.

        Raises:
            UserError: the experiment has no layers for Figure 4, or there is no such point.
        """
        if number == 3:
            lines = [
                (f"lam={lam}", ["--regularizer.lam", str(lam)]) for lam in experiments.SWEEP_LAMBDA
            ]
            values_of_c = experiments.SWEEP_C
        else:
            if not self.experiment.layers:
                raise UserError("--figure 4 exists for mnist_lenet only, as in the paper")
            lines = [
                (layer, ["--regularizer.layers", f"[{pattern}]"])
                for layer, pattern in self.experiment.layers
            ]
            values_of_c = experiments.LAYERS_C
        names = [f"{line},c={c}" for (line, _), c in product(lines, values_of_c)]
        for pattern in points:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"--points: no {pattern}; there are {', '.join(names)}")
        for seed, (line, line_options), c in product(seeds, lines, values_of_c):
            name = f"{line},c={c}"
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in points):
                continue
            options = ("--objective.method", "deep_defense", *line_options)
            options += ("--regularizer.c", str(c), *_EVALUATE_AT_THE_END)
            self._finetuning(seed, Method(f"figure{number}/{name}", line, options))
        return self.ordered()

    def ordered(self) -> list[PlannedRun]:
        """All runs so far, in an order in which they can run."""
        return sorted(self.planned.values(), key=lambda planned: planned.depth)

    def _evaluations(self, seed: int, name: str) -> None:
        """The evaluations of a net: by the paper's attack with the search for eps_ref; by
        ``attack``, in which DeepFool takes as many iterations as it needs."""
        tuned = self._reference(seed) if name == REFERENCE else self.planned[_name(seed, name)]
        config = tuned.config if tuned else self._config(seed, REFERENCE)
        evaluation = config.evaluation
        if "--evaluation.num_images" not in self.options:
            # The YAML file's number is for evaluations in training.
            evaluation = replace(evaluation, num_images=None)
        # The paper's numbers are those of its fp32 direction: docs/evaluation.md.
        fgs = replace(evaluation.fgs, search=True, direction="rounded")
        evaluations = {EVALUATION: replace(evaluation, fgs=fgs)}
        if self.attack is not None:
            attack = replace(
                evaluation.attack, method=self.attack, max_iterations=DISTANCE_ITERATIONS
            )
            evaluations[DISTANCES] = replace(evaluation, attack=attack, fgs=FgsConfig())
        model = replace(config.model, weights=_weights(tuned) or self.weights)
        for folder, evaluation in evaluations.items():
            output = str(config.folder / folder)
            options = _evaluate_config(config, model=model, evaluation=evaluation, output=output)
            name_of_run = f"{_name(seed, name)}/{folder}"
            needs = (tuned,) if tuned else ()
            self._add(PlannedRun(name_of_run, "pipeline.evaluate", options, SUMMARY, needs))

    def _reference(self, seed: int) -> PlannedRun | None:
        """The training of the reference from scratch; None if there are weights."""
        if self.weights is not None:
            return None
        name = _name(seed, REFERENCE)
        if name not in self.planned:
            config = self._config(seed, REFERENCE, "--train.epochs", "0")
            self.planned[name] = PlannedRun(name, _FINETUNE, config, SUMMARY)
        return self.planned[name]

    def _finetuning(self, seed: int, method: Method) -> PlannedRun:
        reference = self._reference(seed)
        needs = [reference] if reference else []
        weights = _weights(reference) or self.weights
        assert weights is not None  # without weights there is a reference
        options = ["--train.pretrain_epochs", "0", "--model.weights", weights, *method.options]
        if method.on_examples:
            examples = self._examples(seed, weights, needs)
            needs.append(examples)
            options += ["--data.train", str(examples.folder / examples.result)]
        config = self._config(seed, method.name, *options)
        name = _name(seed, method.name)
        return self._add(PlannedRun(name, _FINETUNE, config, SUMMARY, tuple(needs)))

    def _examples(self, seed: int, weights: str, needs: Sequence[PlannedRun]) -> PlannedRun:
        config = self._config(seed, EXAMPLES, "--model.weights", weights)
        attack_config = _evaluate_config(
            config,
            data=replace(config.data, val=config.data.train),
            evaluation=replace(config.evaluation, num_images=None),
        )
        name = _name(seed, EXAMPLES)
        return self._add(
            PlannedRun(name, "tools.adversarial", attack_config, "joined.parquet", tuple(needs))
        )

    def _config(self, seed: int, name: str, *options: str) -> FinetuneConfig:
        """The experiment's configuration for one seed, with more options."""
        folder = self.output / _name(seed, name)
        base = ["--config", str(CONFIGS / self.experiment.config)]
        base += [*data.options(self.experiment.data, self.data), "--train.seed", str(seed)]
        argv = [*base, *self.options, *options, "--output", str(folder)]
        config = parse.parse(FinetuneConfig, "", argv)
        return with_absolute_paths(resolve(config))

    def _add(self, planned: PlannedRun) -> PlannedRun:
        """Add a run unless it is there; returns the one that is there."""
        return self.planned.setdefault(planned.name, planned)


def _evaluate_config(config: RunConfig, **changes: Any) -> EvaluateConfig:
    """The options that an evaluation shares with a fine-tuning, with changes."""
    common = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    return EvaluateConfig(**common | changes)


def _weights(trained: PlannedRun | None) -> str | None:
    """The file of weights that a run of finetune.py writes."""
    return str(trained.folder / "weights.pth") if trained else None


def _name(seed: int, name: str) -> str:
    return f"seed{seed}/{name}"
