"""The numbers and texts of a model card, from runs and their evaluations."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from exporting.net_files import library_of
from exporting.source import ExportedNet
from pipeline.config import FinetuneConfig
from pipeline.evaluation import curves
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.summary import Summary
from pipeline.reports import method_titles
from pipeline.reports.runs import Run


def metrics(summary: Summary) -> dict[str, float]:
    """Accuracy from 0 to 1, and the mean ratio by each attack and the smallest, by their names.
    A mean over no image is left out."""
    statistics, rho = summary.statistics, summary.protocol.rho_name
    methods = {} if statistics.diagnostics is None else statistics.diagnostics.methods
    by_method = {f"{rho} by {name}": values["mean"] for name, values in methods.items()}
    if by_method:
        smallest = f"{rho}, the smallest of these"
    else:
        smallest = f"{rho} by {summary.protocol.method_names[0]}"
    numbers = {"accuracy": statistics.accuracy, **by_method, smallest: statistics.rho}
    if statistics.fgs is not None:
        numbers |= {
            f"accuracy after FGS, eps {after.eps:.4g}": after.accuracy
            for after in statistics.fgs.accuracy
        }
    return {name: number for name, number in numbers.items() if number is not None}


def data_set(run: Run) -> str:
    """An evaluation's images: the name of its index's file, and how many were measured."""
    summary = run.evaluation
    name = PurePath(str(run.option("data.val"))).stem
    number, num_indexed = summary.statistics.num_samples, summary.identity.num_indexed
    part = "" if number == num_indexed else f" of {num_indexed:,}"
    skipped = f" ({len(summary.skipped):,} did not decode)" if summary.skipped else ""
    return f"{name}, {number:,}{part} images{skipped}"


def half_budget(run: Run) -> float | None:
    """The budget ||dx||_p at which half of the correct images change their class; None: beyond all
    measured ones."""
    curve = next(iter(curves.curves_of(run.samples, run.protocol).values()))
    reached = np.flatnonzero(2 * curve.num_robust <= curve.num_robust[0])
    return float(curve.budget[reached[0]]) if len(reached) else None


def evaluation_facts(name: str, run: Run) -> dict[str, Any]:
    """What the card says of one evaluation."""
    summary, protocol = run.evaluation, run.protocol
    attack = ", then ".join(protocol.methods or ["deepfool"])
    return {
        "name": name,
        "data_set": data_set(run),
        "index": summary.identity.index,
        "num_images": summary.statistics.num_samples,
        "metrics": metrics(summary),
        "norm": protocol.norm,
        "half_budget": half_budget(run),
        "measure": protocol.measure,
        "attack": attack + _limits(protocol, f"; {protocol.num_candidates} candidate classes"),
        "space": protocol.space,
        "precision": protocol.precision,
        "decoder": summary.identity.input.decoder,
        "environment": environment(run),
    }


def _limits(protocol: Protocol, candidates: str = "") -> str:
    """The limits of DeepFool's search, behind ``candidates``; empty if no attack uses DeepFool."""
    if not protocol.uses_deepfool:
        return ""
    return f"{candidates}, at most {protocol.max_iterations} iterations"


def environment(run: Run) -> str:
    """Device, versions and commit of a run, in one line."""
    values = run.environment
    versions: Mapping[str, str] = values.get("versions", {})
    return ", ".join([str(values.get("device", "")), *(f"{k} {v}" for k, v in versions.items())])


def training_facts(run: Run, config: FinetuneConfig) -> dict[str, Any]:
    """What the card says of the fine-tuning."""
    summary, objective = run.finetuning, config.objective
    term = config.regularizer
    options = {
        "epochs": config.train.epochs,
        "batch size": config.train.batch_size,
        "learning rate": config.optim.lr,
        "precision": config.runtime.precision,
        "seed": config.train.seed,
    }
    if "deep_defense" in objective.method.split("+"):
        options |= {"lambda": term.lam, "c": term.c, "d": term.d, "gradient": term.gradient}
    if objective.targets == "reference":
        options["targets"] = "the classes that the start net predicts (labels were not used)"
    return {
        "method": method_titles.in_text(objective.method),
        "options": options,
        "base": config.model.weights and PurePath(config.model.weights).name,
        "rho": f"{summary.protocol.rho_name} by {' + '.join(summary.protocol.method_names)}",
        "limits": _limits(summary.protocol),
        "before": summary.before,
        "after": summary.after,
        "environment": environment(run),
    }


def loading(exported: ExportedNet) -> str:
    """The name of the way in which the card loads the net."""
    library = library_of(exported)
    return library if library in ("timm", "torchvision", "deep-defense-pipeline") else "own"
