"""Folders of runs, as the tables and figures read them.

In: folders that pipeline/finetune.py or pipeline/evaluate.py wrote, with labels. Out: `Run`s.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import FinetuneConfig
from pipeline.config.aliases import translate, translate_argv
from pipeline.errors import UserError
from pipeline.evaluation.samples import Samples, rho_name
from pipeline.evaluation.summary import read_samples
from pipeline.runtime.json_checks import LIST, NOTHING, NUMBER, OBJECT, TEXT, lacking


@dataclass(frozen=True)
class Run:
    """A folder with a summary."""

    label: str
    folder: Path
    summary: dict[str, Any]

    @property
    def is_evaluation(self) -> bool:
        """Of pipeline/evaluate.py, not of pipeline/finetune.py."""
        return "history" not in self.summary

    @property
    def history(self) -> list[dict[str, Any]]:
        """The evaluations of a fine-tuning, the reference first.

        Raises:
            UserError: it is an evaluation.
        """
        if self.is_evaluation:
            raise UserError(f"{self.folder} is an evaluation; this needs runs of finetune.py")
        return self.summary["history"]

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
            raise UserError(f"{path} has no option {name}") from None
        return value


def named(argument: str) -> Run:
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
        summary = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"no file {path}: is {folder} a run that has ended? The shards of an evaluation are "
            "joined by tools/report.py merge"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("definition"), dict):
        raise UserError(f"{path} is no summary of this project's runs")
    problem = _problem(summary)
    if problem:
        raise UserError(f"{path} {problem}; run its command again, which writes it anew")
    return Run(label or folder.name, folder, summary)


def _problem(summary: dict[str, Any]) -> str:
    """What tables and figures would miss in a summary, as a phrase; empty if nothing."""
    problem = lacking(summary["definition"], {"norm": TEXT})
    if problem:
        return f"{problem} of its definition"
    measured = {"accuracy": NUMBER, rho_name(summary["definition"]): NUMBER}
    if "history" not in summary:
        return lacking(summary, measured) or _fgs_problem(summary.get("fgs"))
    problem = lacking(summary, {"history": LIST, "before": OBJECT, "after": OBJECT})
    if problem:
        return problem
    if not summary["history"]:
        return "lacks history: no evaluation has ended"
    entries = {f"evaluation {number}": e for number, e in enumerate(summary["history"])}
    problems = {name: lacking(e, {"epoch": NUMBER, **measured}) for name, e in entries.items()}
    problems |= {name: lacking(summary[name], measured) for name in ("before", "after")}
    return next((f"{text} in {name}" for name, text in problems.items() if text), "")


def _fgs_problem(fgs: Any) -> str:
    if fgs is None:
        return ""
    problem = lacking(fgs, {"accuracy": LIST})
    entries = [] if problem else fgs["accuracy"]
    problems = (lacking(entry, {"eps": NUMBER, "accuracy": NUMBER}) for entry in entries)
    problem = problem or next(filter(None, problems), "")
    chosen = {name: NUMBER + NOTHING for name in ("reference", "eps_ref") if name in fgs}
    problem = problem or lacking(fgs, chosen)
    return f"{problem} of FGS" if problem else ""
