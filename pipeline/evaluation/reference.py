"""The reference model of FGS: its eps, read from the summary of its evaluation."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import RunConfig
from pipeline.config.parse import differences
from pipeline.data import source
from pipeline.errors import UserError, warn
from pipeline.evaluation.protocol import preprocessing_of, space_of

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def resolve_reference(config: ConfigT) -> ConfigT:
    """The configuration with evaluation.fgs.reference as a number.

    If it is the folder of an evaluation, the number is that evaluation's eps_ref. A warning is
    printed if that evaluation has other images or another preprocessing.

    Args:
        config: the options; data.preprocessing is resolved.

    Raises:
        UserError: the folder contains no evaluation that searched for eps_ref; or the evaluation
            lacks images, or has another space or direction of FGS than this one.
    """
    fgs = config.evaluation.fgs
    if not isinstance(fgs.reference, str):
        return config
    path = Path(fgs.reference) / "summary.json"
    try:
        summary = json.loads(path.read_text())
        eps_ref = summary["fgs"]["eps_ref"]
    except (OSError, ValueError, KeyError, TypeError):
        summary, eps_ref = {}, None
    if not isinstance(eps_ref, int | float) or not 0 < eps_ref < math.inf:
        raise UserError(
            f"evaluation.fgs.reference: {path} holds no eps_ref; evaluate that model with "
            "--evaluation.fgs.search true, or give a number"
        )
    _check_measured_alike(path, summary, config)
    return replace(
        config, evaluation=replace(config.evaluation, fgs=replace(fgs, reference=float(eps_ref)))
    )


def _check_measured_alike(path: Path, summary: dict[str, Any], config: RunConfig) -> None:
    """Refuse an eps_ref that has another meaning in this evaluation; warn of other images.

    Args:
        path: summary.json of the reference.
        summary: its values. Those that it lacks are not compared, except for the direction:
            earlier versions, which recorded none, took the rounded gradient.
        config: the options of this evaluation.
    """
    if summary.get("num_missing"):
        raise UserError(
            f"evaluation.fgs.reference: {path} lacks {summary['num_missing']} images; evaluate "
            "them with the same command as the others, or give a number"
        )
    definition = _object(summary, "definition")
    there, here = {}, {}
    if "space" in definition:
        there["space"], here["space"] = definition["space"], space_of(config.evaluation)
    if "fgs" in definition:
        there["fgs.direction"] = _object(definition, "fgs").get("direction", "rounded")
        here["fgs.direction"] = config.evaluation.fgs.direction
    changed = differences(there, here, ())
    if changed:
        raise UserError(
            f"evaluation.fgs.reference: {path} was measured differently ({'; '.join(changed)}); "
            "evaluate both models with the same evaluation.space, clip and fgs.direction, or give "
            "a number"
        )
    there, here = {}, {}
    if "input" in summary:
        there["input"] = _object(summary, "input")
        here["input"] = preprocessing_of(config.data, None).to_dict()
    if "index" in summary:
        there["index"], here["index"] = summary["index"], _index_of(config) or summary["index"]
    changed = differences(there, here, ("input.decoder",))
    if changed:
        warn(
            f"evaluation.fgs.reference: {path} is of other images or another preprocessing: "
            f"{'; '.join(changed)}"
        )


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def _index_of(config: RunConfig) -> str | None:
    """The hash of the index; None if it cannot be read, which the run reports itself."""
    try:
        return source.open_index(config, "val").fingerprint
    except UserError:
        return None
