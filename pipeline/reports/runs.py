"""Folders of runs, as the tables and figures read them.

In: folders that pipeline/finetune.py or pipeline/evaluate.py wrote, with labels. Out: `Run`s.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import FinetuneConfig
from pipeline.config.aliases import translate, translate_argv
from pipeline.config.checks import all_options
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.summary import Summary, read_samples
from pipeline.runtime.json_checks import LIST, NOTHING, NUMBER, OBJECT, schema_problem


class Measured(NamedTuple):
    """An evaluation during a fine-tuning."""

    epoch: float
    accuracy: float
    rho: float | None  # None: no image has a ratio
    diagnostics: Diagnostics | None  # earlier versions did not write them

    @classmethod
    def from_dict(cls, values: Any, rho_name: str) -> "Measured":
        """Create it from an entry of the history.

        Raises:
            ValueError: the message is a phrase about what is wrong with it.
        """
        kinds = {"epoch": NUMBER, "accuracy": NUMBER, rho_name: NUMBER + NOTHING}
        problem = schema_problem(values, kinds)
        if problem:
            raise ValueError(problem)
        diagnostics = values.get("diagnostics")
        return cls(
            values["epoch"],
            values["accuracy"],
            values[rho_name],
            None if diagnostics is None else Diagnostics.from_dict(diagnostics),
        )


@dataclass(frozen=True, kw_only=True)
class FinetuningSummary:
    """summary.json of pipeline/finetune.py, as far as reports need it."""

    protocol: Protocol
    history: list[Measured]  # the reference first
    before: Measured
    after: Measured
    environment: dict[str, Any]  # device and versions

    @classmethod
    def from_dict(cls, values: Any) -> "FinetuningSummary":
        """Create it from the values of a file.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        problem = schema_problem(values, {"history": LIST, "before": OBJECT, "after": OBJECT})
        if problem:
            raise ValueError(problem)
        if not values["history"]:
            raise ValueError("lacks history: no evaluation has ended")
        protocol = Protocol.from_dict(values["definition"])

        def measured(entry: Any, name: str) -> Measured:
            try:
                return Measured.from_dict(entry, protocol.rho_name)
            except ValueError as error:
                raise ValueError(f"{error} in {name}") from None

        return cls(
            protocol=protocol,
            history=[
                measured(entry, f"evaluation {number}")
                for number, entry in enumerate(values["history"])
            ],
            before=measured(values["before"], "before"),
            after=measured(values["after"], "after"),
            environment={name: values[name] for name in ("device", "versions") if name in values},
        )


@dataclass(frozen=True)
class Run:
    """A folder with a summary."""

    label: str
    folder: Path
    summary: Summary | FinetuningSummary

    @property
    def protocol(self) -> Protocol:
        """How the run's numbers were measured."""
        return self.summary.protocol

    @property
    def is_evaluation(self) -> bool:
        """Whether pipeline/evaluate.py wrote the folder; otherwise pipeline/finetune.py did."""
        return isinstance(self.summary, Summary)

    @property
    def evaluation(self) -> Summary:
        """The summary of an evaluation.

        Raises:
            UserError: it is a fine-tuning.
        """
        if not isinstance(self.summary, Summary):
            raise UserError(f"{self.folder} is a fine-tuning; this needs runs of evaluate.py")
        return self.summary

    @property
    def finetuning(self) -> FinetuningSummary:
        """The summary of a fine-tuning.

        Raises:
            UserError: it is an evaluation.
        """
        if isinstance(self.summary, Summary):
            raise UserError(f"{self.folder} is an evaluation; this needs runs of finetune.py")
        return self.summary

    @property
    def environment(self) -> dict[str, Any]:
        """Device and versions of the run; for an evaluation, those of its last job."""
        if isinstance(self.summary, Summary):
            return self.summary.runs[-1] if self.summary.runs else {}
        return self.summary.environment

    @cached_property
    def samples(self) -> Samples:
        """The per-image results of an evaluation.

        Raises:
            UserError: it is a fine-tuning, or samples.parquet is missing or damaged.
        """
        if not self.is_evaluation:
            raise UserError(f"{self.folder} is a fine-tuning; this needs runs of evaluate.py")
        return read_samples(self.folder / "samples.parquet")[0]

    def option(self, name: str) -> Any:
        """An option of the run's config.yaml, as section.option; earlier spellings are read too.

        Raises:
            UserError: there is none.
        """
        path = self.folder / "config.yaml"
        (word,), _ = translate_argv(FinetuneConfig, [f"--{name}"])
        try:
            value = translate(FinetuneConfig, yaml.safe_load(path.read_text())).values
            for key in word.removeprefix("--").split("."):
                value = value[key]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            hint = did_you_mean(name, all_options(FinetuneConfig))
            raise UserError(f"{path} has no option {name}{hint}") from None
        return value


def run_of_argument(argument: str) -> Run:
    """A run from a command line's ``FOLDER`` or ``LABEL=FOLDER``.

    Raises:
        UserError: there is no such folder, or no summary in it.
    """
    label, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():
        return read(Path(argument))
    return read(Path(folder), label)


def read(folder: Path, label: str | None = None) -> Run:
    """A run; its label is its folder's name by default.

    Raises:
        UserError: there is no such folder, or no summary in it.
    """
    path = folder / "summary.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"no file {path}: is {folder} a run that has ended? The shards of an evaluation are "
            "merged by tools/report.py merge"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("definition"), dict):
        raise UserError(f"{path} is no summary of this project's runs")
    kind = FinetuningSummary if "history" in values else Summary
    try:
        summary = kind.from_dict(values)
    except ValueError as error:
        raise UserError(f"{path} {error}; run its command again, which replaces it") from None
    return Run(label or folder.name, folder, summary)
