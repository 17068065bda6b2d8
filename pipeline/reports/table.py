"""Runs in the shape of the paper's Table 1: accuracy, rho2, accuracy after FGS at eps_ref.

In: `Run`s labelled NETWORK:METHOD. Out: `TableRow`s, which `pipeline.reports.table_formats` writes.
"""

from typing import Any, NamedTuple

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.config.parse import differences
from pipeline.errors import warn
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.statistics import Statistics, accuracy_at

from .runs import Run

_IMAGES = ("index", "num_indexed", "num_images", "input")  # keys of identities


class RhoByAttack(NamedTuple):
    """The mean ratios of one evaluation by each of its attacks."""

    # Of the images that the attack flips, None of none; of a single attack, rho2
    rho: dict[str, float | None]
    best: float | None = None  # of the smallest known distances; None: a single attack
    deepfool_over_best: float | None = None  # over the images that DeepFool flips


class TableRow(NamedTuple):
    """One line; accuracies from 0 to 1."""

    network: str
    method: str
    accuracy: float
    rho: float | None  # None: no image has a ratio
    after_fgs: tuple[float | None, ...]  # at 0.2, 0.5 and 1.0 eps_ref
    eps_ref: float | None
    by_attack: RhoByAttack | None = None
    bounds: tuple[float, float] | None = None  # means of a lower bound and of the best known ratio
    rho_name: str = "rho2"  # of ``rho``; rho_inf in the maximum norm


def rows_of(runs: list[Run], eps_ref: float | None = None) -> list[TableRow]:
    """One row for an evaluation, and two (before and after) for a fine-tuning, by network.

    Args:
        runs: the order of the rows; runs of one network are put together.
        eps_ref: eps_ref of every row. Default: evaluation.fgs.reference of a network's runs, or
            eps_ref of its last run that searched for one. (The Deep Defense model should be last,
            as in the paper.)
    """
    networks: dict[str, list[Run]] = {}
    for run in runs:
        networks.setdefault(_network(run), []).append(run)
    rows: list[TableRow] = []
    for network, members in networks.items():
        reference = _reference(members) if eps_ref is None else eps_ref
        for run in members:
            rows += _rows(network, run, reference)
    return rows


def _network(run: Run) -> str:
    network, colon, _ = run.label.partition(":")
    if colon:
        return network
    return run.evaluation.identity.model if run.is_evaluation else str(run.option("model.name"))


def _method(run: Run) -> str:
    return run.label.partition(":")[2] or run.label


def _reference(runs: list[Run]) -> float | None:
    """eps_ref of a network, from its runs."""
    statistics = [run.evaluation.statistics.fgs for run in runs if run.is_evaluation]
    measured = [fgs for fgs in statistics if fgs is not None]
    references = [fgs.reference for fgs in measured if fgs.reference]
    searched = [fgs.eps_ref for fgs in measured if fgs.eps_ref]
    candidates = references or searched
    return candidates[-1] if candidates else None


def _rows(network: str, run: Run, reference: float | None) -> list[TableRow]:
    not_measured = (None,) * len(EPS_REF_FRACTIONS)
    if not run.is_evaluation:
        measured = {"Reference": run.finetuning.before, _method(run): run.finetuning.after}
        return [
            TableRow(
                *(network, method, entry.accuracy, entry.rho, not_measured, None),
                by_attack=_by_attack(run.protocol, entry.rho, entry.diagnostics),
                rho_name=run.protocol.rho_name,
            )
            for method, entry in measured.items()
        ]
    after_fgs = not_measured
    if reference is not None:
        after_fgs = tuple(_after_fgs(run, f * reference) for f in EPS_REF_FRACTIONS)
    statistics = run.evaluation.statistics
    row = TableRow(
        network,
        _method(run),
        statistics.accuracy,
        statistics.rho,
        after_fgs,
        eps_ref=reference,
        by_attack=_by_attack(run.protocol, statistics.rho, statistics.diagnostics),
        bounds=_bounds(statistics),
        rho_name=run.protocol.rho_name,
    )
    return [row]


def _bounds(statistics: Statistics) -> tuple[float, float] | None:
    diagnostics = statistics.diagnostics
    bound = None if diagnostics is None else diagnostics.lower_bound
    return None if bound is None else (bound["mean"], bound["mean_upper"])


def _by_attack(
    protocol: Protocol, rho: float | None, diagnostics: Diagnostics | None
) -> RhoByAttack:
    """The ratios by each attack of a run; ``rho`` is that of the smallest distances."""
    if diagnostics is None or not diagnostics.methods:
        names = protocol.method_names
        return RhoByAttack({names[0]: rho} if len(names) == 1 else {})
    by_name = {name: ratios["mean"] for name, ratios in diagnostics.methods.items()}
    return RhoByAttack(by_name, diagnostics.best, diagnostics.deepfool_over_best)


def _after_fgs(run: Run, eps: float) -> float | None:
    """The measured accuracy; otherwise the one computed from each image's smallest eps; None
    without either."""
    fgs = run.evaluation.statistics.fgs
    if fgs is None:
        return None
    for entry in fgs.accuracy:
        if abs(entry.eps - eps) <= 1e-6 * eps:
            return entry.accuracy
    return accuracy_at(run.samples, eps) if fgs.searched else None


def warn_of_differences(runs: list[Run]) -> None:
    """Warn where the runs' numbers have different meanings, or are of a part of the images."""
    first = runs[0]
    directions = {run.protocol.fgs.direction for run in runs if run.protocol.fgs is not None}
    if len(directions) > 1:
        warn(f"accuracies after FGS are of different directions: {', '.join(sorted(directions))}")
    for run in runs[1:]:
        # The sentence ``measure`` follows from the methods.
        same_methods = run.protocol.methods == first.protocol.methods
        may_differ = ("fgs",) if same_methods else ("fgs", "measure")
        changed = differences(first.protocol.to_dict(), run.protocol.to_dict(), may_differ)
        if changed:
            changes = "; ".join(changed)
            warn(f"{first.folder} and {run.folder} were measured differently: {changes}")
    _warn_of_data_sets(runs)
    for run in runs:
        if run.is_evaluation:
            _warn_of_left_out_images(run)


def _warn_of_left_out_images(run: Run) -> None:
    summary = run.evaluation
    counts = {"are missing": summary.num_missing, "did not decode": len(summary.skipped)}
    parts = [f"{count} images {what}" for what, count in counts.items() if count]
    if parts:
        warn(f"{run.folder} is of a part of its images: {', '.join(parts)}")


def _warn_of_data_sets(runs: list[Run]) -> None:
    """Warn where a network's runs used different images or preprocessing."""
    first: dict[tuple[str, bool], Run] = {}
    for run in runs:
        network = _network(run)
        earlier = first.setdefault((network, run.is_evaluation), run)
        if earlier is run:
            continue
        changed = differences(_images_of(earlier), _images_of(run), ("input.decoder",))
        if changed:
            warn(
                f"{earlier.folder} and {run.folder}, both of {network}, used different images or "
                f"preprocessing: {'; '.join(changed)}"
            )


def _images_of(run: Run) -> dict[str, Any]:
    """The identity of the images that a run was evaluated on, and their preprocessing."""
    if run.is_evaluation:
        identity = run.evaluation.identity.to_dict()
        return {name: identity[name] for name in _IMAGES}
    return {name: run.option(name) for name in ("data.val", "evaluation.num_images")}
