"""Which runs an experiment consists of, and what each needs before it.

In: an experiment, seeds, a folder. Out: `PlannedRun`s in an order in which they can run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from launchers.submit import SUBMITTED, with_absolute_paths
from pipeline.config import CONFIGS, EvaluateConfig, FinetuneConfig, RunConfig, parse
from pipeline.errors import UserError
from reproduction import data, experiments
from reproduction.experiments import EXAMPLES, REFERENCE, Experiment, Method

_FINETUNE, _SUMMARY = "pipeline.finetune", "summary.json"
_LAST = ("--evaluation.every_epochs", "1000")  # only the end of a sweep's runs is drawn
# Of a reference, which sees none of them.
_FREE_TOO = ("regularizer", "objective", "schedule")
_FREE = ("resume", "dry_run", "runtime", "data.num_threads", "evaluation.batch_size")


@dataclass(frozen=True)
class PlannedRun:
    """One run of an entry point."""

    name: str  # of its folder in OUTPUT: seed0/deep_defense
    module: str
    config: RunConfig  # with absolute paths
    result: str  # the file that it ends with
    needs: tuple["PlannedRun", ...] = ()

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.config.folder

    @cached_property
    def depth(self) -> int:
        """Length of the longest chain of units before it."""
        return 1 + max((unit.depth for unit in self.needs), default=-1)

    def done(self) -> bool:
        """Whether it has ended, with these options.

        Raises:
            UserError: its folder belongs to a run with other options.
        """
        path = self.folder / SUBMITTED
        if not path.exists():
            return False
        free, config = _FREE, self.config
        if isinstance(config, FinetuneConfig) and config.train.epochs == 0:
            free += _FREE_TOO
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
    """Makes the units of an experiment, each once."""

    def __init__(
        self,
        experiment: Experiment,
        output: Path,
        given: Sequence[str] = (),
        weights: str | None = None,
    ) -> None:
        """See the class.

        Args:
            experiment: which.
            output: folder of all runs.
            given: words for every fine-tuning, which win over the experiment's YAML file.
            weights: of the reference, in place of the experiment's own.
        """
        self.weights = weights or experiment.weights
        self.experiment, self.output, self.given = experiment, output.absolute(), list(given)
        self.data = self.output / "data"
        self.units: dict[str, PlannedRun] = {}

    def table(self, seeds: Sequence[int], names: Sequence[str]) -> list[PlannedRun]:
        """The evaluations behind the table: of the reference and of some methods, for each seed."""
        methods = [m for m in self.experiment.methods if m.name in names]
        for seed in seeds:
            self.evaluation(seed, REFERENCE)
            for method in methods:
                self._tuning(seed, method)
                self.evaluation(seed, method.name)
        return self.ordered()

    def histories(self, seed: int, names: Sequence[str]) -> list[PlannedRun]:
        """The fine-tunings that Figure 2 draws."""
        for method in self.experiment.methods:
            if method.name in names:
                self._tuning(seed, method)
        return self.ordered()

    def sweep(self, seed: int, number: int) -> list[PlannedRun]:
        """Figure 3 (lambda by c) or Figure 4 (layers by c).

        Raises:
            UserError: the experiment has no layers for Figure 4.
        """
        if number == 3:
            lines = [
                (f"lam={lam}", ["--regularizer.lam", str(lam)]) for lam in experiments.SWEEP_LAMBDA
            ]
            steps = experiments.SWEEP_C
        else:
            if not self.experiment.layers:
                raise UserError("--figure 4 is the paper's for mnist_lenet")
            lines = [
                (layer, ["--regularizer.layers", f"[{pattern}]"])
                for layer, pattern in self.experiment.layers
            ]
            steps = experiments.LAYERS_C
        for line, words in lines:
            for c in steps:
                options = ("--objective.method", "deep_defense", *words, "--regularizer.c", str(c))
                options += _LAST
                self._tuning(seed, Method(f"figure{number}/{line},c={c}", line, options))
        return self.ordered()

    def ordered(self) -> list[PlannedRun]:
        """All units so far; what comes before others first."""
        return sorted(self.units.values(), key=lambda unit: unit.depth)

    def evaluation(self, seed: int, name: str) -> PlannedRun:
        """Of a net, with the search for eps_ref."""
        tuned = self._reference(seed) if name == REFERENCE else self.units[_name(seed, name)]
        config = tuned.config if tuned else self._options(seed, REFERENCE)
        weights = str(tuned.folder / "weights.pth") if tuned else self.weights
        measured = replace(config.evaluation, fgs=replace(config.evaluation.fgs, search=True))
        if "--evaluation.num_images" not in self.given:
            measured.num_images = None  # fewer may do after each epoch, but not in the table
        evaluated = _evaluation(
            config,
            model=replace(config.model, weights=weights),
            evaluation=measured,
            output=str(config.folder / "evaluation"),
        )
        unit = PlannedRun(
            f"{_name(seed, name)}/evaluation",
            "pipeline.evaluate",
            evaluated,
            _SUMMARY,
            (tuned,) if tuned else (),
        )
        return self._known(unit)

    def _reference(self, seed: int) -> PlannedRun | None:
        """Trained from scratch, unless there are weights."""
        if self.weights is not None:
            return None
        name = _name(seed, REFERENCE)
        if name not in self.units:
            config = self._options(seed, REFERENCE, "--train.epochs", "0")
            self.units[name] = PlannedRun(name, _FINETUNE, config, _SUMMARY)
        return self.units[name]

    def _tuning(self, seed: int, method: Method) -> PlannedRun:
        reference = self._reference(seed)
        needs = [reference] if reference else []
        weights = str(reference.folder / "weights.pth") if reference else self.weights
        assert weights is not None  # without weights there is a reference
        words = ["--train.pretrain_epochs", "0", "--model.weights", weights, *method.options]
        if method.on_examples:
            examples = self._examples(seed, weights, needs)
            needs.append(examples)
            words += ["--data.train", str(examples.folder / examples.result)]
        config = self._options(seed, method.name, *words)
        unit = PlannedRun(_name(seed, method.name), _FINETUNE, config, _SUMMARY, tuple(needs))
        return self._known(unit)

    def _examples(self, seed: int, weights: str, needs: Sequence[PlannedRun]) -> PlannedRun:
        config = self._options(seed, EXAMPLES, "--model.weights", weights)
        attacked = _evaluation(
            config,
            data=replace(config.data, val=config.data.train),
            evaluation=replace(config.evaluation, num_images=None),
        )
        unit = PlannedRun(
            _name(seed, EXAMPLES),
            "tools.adversarial",
            attacked,
            "joined.parquet",
            tuple(needs),
        )
        return self._known(unit)

    def _options(self, seed: int, name: str, *words: str) -> FinetuneConfig:
        place = self.output / _name(seed, name)
        base = ["--config", str(CONFIGS / self.experiment.config)]
        base += [*data.options(self.experiment.data, self.data), "--train.seed", str(seed)]
        argv = [*base, *self.given, *words, "--output", str(place)]
        return with_absolute_paths(parse.parse(FinetuneConfig, "", argv))

    def _known(self, unit: PlannedRun) -> PlannedRun:
        return self.units.setdefault(unit.name, unit)


def _evaluation(config: RunConfig, **changes: Any) -> EvaluateConfig:
    """What an evaluation shares with a fine-tuning, but for ``changes``."""
    common = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    return EvaluateConfig(**common | changes)


def _name(seed: int, name: str) -> str:
    return f"seed{seed}/{name}"
