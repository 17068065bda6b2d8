"""The reference model of FGS: its eps, read from the summary of its evaluation."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pipeline.config import RunConfig
from pipeline.errors import UserError

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def resolve_reference(config: ConfigT) -> ConfigT:
    """The configuration with evaluation.fgs.reference as a number.

    If it is the folder of an evaluation, the number is that evaluation's eps_ref.

    Raises:
        UserError: the folder contains no evaluation that searched for eps_ref.
    """
    fgs = config.evaluation.fgs
    if not isinstance(fgs.reference, str):
        return config
    path = Path(fgs.reference) / "summary.json"
    try:
        eps_ref = json.loads(path.read_text())["fgs"]["eps_ref"]
    except (OSError, ValueError, KeyError, TypeError):
        eps_ref = None
    if not isinstance(eps_ref, int | float) or not 0 < eps_ref < math.inf:
        raise UserError(
            f"evaluation.fgs.reference: {path} holds no eps_ref; evaluate that model with "
            "--evaluation.fgs.search true, or give a number"
        )
    return replace(
        config, evaluation=replace(config.evaluation, fgs=replace(fgs, reference=float(eps_ref)))
    )
