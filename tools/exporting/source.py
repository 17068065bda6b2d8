"""What is exported: the net of a run, its weights and classes, and evaluations of these weights.

In: the folder of a fine-tuning or an evaluation. Out: an `ExportedNet`, and its `Evaluations`.
"""

import itertools
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import nn

from pipeline.config import (
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    parse,
)
from pipeline.data.classes import Classes
from pipeline.errors import UserError, warn
from pipeline.evaluation.protocol import preprocessing_of
from pipeline.evaluation.shard_results import ResultsFolder
from pipeline.models.build import construct
from pipeline.models.weight_classes import recorded_classes
from pipeline.models.weights import load_weights
from pipeline.models.weights_hash import weights_hash
from pipeline.models.weights_names import is_file_name
from pipeline.reports import evaluation_folders, runs
from pipeline.reports.runs import Run

ConfigT = TypeVar("ConfigT", bound=RunConfig)

RUN_OPTIONS_FILE = "config.yaml"
_WEIGHTS = "weights.pth"


@dataclass(frozen=True, kw_only=True)
class ExportedNet:
    """A net with its weights, as the library that it comes from builds it.

    Attributes:
        net: the net on the CPU, in evaluation mode.
        model: its options; `weights` is the file or the name that was read.
        data: the preprocessing of its images.
        num_classes: number of its outputs.
        classes: the classes of its outputs, in their order; None where no file states them.
        training: the options of the fine-tuning; None if the run is an evaluation.
    """

    net: nn.Module
    model: ModelConfig
    data: DataConfig
    num_classes: int
    classes: Classes | None
    training: FinetuneConfig | None

    @cached_property
    def weights_hash(self) -> str:
        """The hash by which evaluations identify the weights."""
        return weights_hash(self.net)


def read_run(folder: Path) -> Run:
    """The run of a folder, with its options beside it.

    Raises:
        UserError: it is no run that has ended.
    """
    run = runs.read(folder)
    if not (folder / RUN_OPTIONS_FILE).is_file():
        raise UserError(f"no file {folder / RUN_OPTIONS_FILE}, which has the options of the run")
    return run


def options_of(run: Run, kind: type[ConfigT]) -> ConfigT:
    """The options of a run, as one of the entry points reads them."""
    return parse.parse(kind, None, ["--config", str(run.folder / RUN_OPTIONS_FILE)])


def exported_net(run: Run, weights: Path | None = None) -> ExportedNet:
    """The net of a run.

    Args:
        run: a fine-tuning, whose weights.pth is read, or an evaluation, whose model.weights is.
        weights: another place of the same weights, if they have been moved.

    Raises:
        UserError: there are no such weights, or not those that were evaluated.
    """
    config = options_of(run, EvaluateConfig)
    training = None
    if not run.is_evaluation:
        training = options_of(run, FinetuneConfig)
        weights = weights or run.folder / _WEIGHTS
    model = replace(config.model, new_head=False)
    if weights is not None:
        model = replace(model, weights=str(weights))
    if model.weights is None:
        raise UserError(f"{run.folder} evaluated a net with random weights: nothing to export")
    classes = _classes(run, model.weights)
    num_classes = model.num_classes or (len(classes) if classes is not None else None)
    if num_classes is None:
        raise UserError(
            f"{run.folder}: neither its options nor {model.weights} state the number of classes; "
            f"add model.num_classes to {run.folder / RUN_OPTIONS_FILE}"
        )
    net = construct(model.name, num_classes, config.data.crop_size)
    load_weights(net, model, num_classes, config.data.crop_size)
    exported = ExportedNet(
        net=net.eval(),
        model=model,
        data=config.data,
        num_classes=num_classes,
        classes=classes if classes is not None and len(classes) == num_classes else None,
        training=training,
    )
    if run.is_evaluation:
        remedy = f"{model.weights} has changed since; give the file with --weights"
        _check_hash(run, exported, remedy)
    return exported


def evaluations_of(run: Run, exported: ExportedNet, folders: list[Path]) -> dict[str, Run]:
    """The evaluations to publish with a net, by a name for the folder of each.

    Args:
        run: the run that is exported; if it is an evaluation, it is the first.
        exported: the net of the run.
        folders: further evaluations. If there are none, those in the folder of a fine-tuning that
            are of its final weights.

    Raises:
        UserError: an evaluation is of other weights or another preprocessing, or images are
            missing in it.
    """
    selected = [run] if run.is_evaluation else []
    for evaluation in map(read_run, folders):
        _check_hash(evaluation, exported, "export it by itself, or leave it out")
        changed = _other_preprocessing(evaluation, exported)
        if changed:
            raise UserError(
                f"{evaluation.folder} is an evaluation with another preprocessing ({changed}) than "
                "the card will state: export it by itself, or leave it out"
            )
        selected.append(evaluation)
    if not selected:
        selected = [nested for nested in _nested(run.folder) if _belongs_to(nested, exported)]
    names: dict[str, Run] = {}
    for evaluation in selected:
        if evaluation.evaluation.num_missing:
            raise UserError(
                f"{evaluation.folder} lacks {evaluation.evaluation.num_missing} images; run its "
                "shards again, then merge them"
            )
        names[_unused(evaluation.folder.resolve().name, names)] = evaluation
    if not names:
        warn(
            f"{run.folder}: no evaluation of these weights, so the card has only the numbers of "
            "the fine-tuning; run pipeline/evaluate.py and give its folder with --evaluation"
        )
    return names


def _unused(name: str, used: Container[str]) -> str:
    """The name, with a number behind it if it is used."""
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in used)


def _nested(folder: Path) -> list[Run]:
    """The evaluations in the folder of a run, such as those of tools/reproduce.py. Those that
    cannot be read are left out, with a warning."""
    evaluations = []
    for evaluation in evaluation_folders.find([folder], lambda error: warn(str(error))):
        try:
            run = read_run(evaluation.folder)
        except UserError as error:
            warn(f"left out: {error}")
            continue
        evaluations += [run] if run.is_evaluation else []
    return evaluations


def _belongs_to(nested: Run, exported: ExportedNet) -> bool:
    """Whether a card can have an evaluation; a warning if its preprocessing is another one."""
    if not _is_of(nested, exported):
        return False
    changed = _other_preprocessing(nested, exported)
    if changed:
        warn(f"left out: {nested.folder}, whose preprocessing is another one ({changed})")
    return not changed


def _other_preprocessing(evaluation: Run, exported: ExportedNet) -> str:
    """What differs in an evaluation's preprocessing, except the decoder; empty if nothing does."""
    own = evaluation.evaluation.identity.input.to_dict()
    stated = preprocessing_of(exported.data, None).to_dict()
    changed = [name for name in stated if name != "decoder" and own[name] != stated[name]]
    return ", ".join(f"{name} {own[name]}, not {stated[name]}" for name in changed)


def _is_of(evaluation: Run, exported: ExportedNet) -> bool:
    return evaluation.evaluation.identity.weights == exported.weights_hash


def _check_hash(evaluation: Run, exported: ExportedNet, remedy: str) -> None:
    if not _is_of(evaluation, exported):
        measured = evaluation.evaluation.identity.weights
        raise UserError(
            f"{evaluation.folder} is an evaluation of other weights (hash {measured}, not "
            f"{exported.weights_hash}): {remedy}"
        )


def _classes(run: Run, weights: str) -> Classes | None:
    """The classes by the file of weights, or else by the results of an evaluation."""
    recorded = recorded_classes(Path(weights)) if is_file_name(weights) else None
    if recorded is not None or not run.is_evaluation:
        return recorded
    about = ResultsFolder(run.folder / "results").read().manifest.about
    return Classes.from_dict({"names": about.get("class_names"), "ids": about.get("class_ids")})
