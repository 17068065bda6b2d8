"""Checks that two measurements of one image agree, within the accuracy of their machines."""

from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.manifest import Manifest
from pipeline.evaluation.result_lines import ResultRow
from pipeline.evaluation.samples import COLUMNS, column_type

_FLOATS = frozenset(name for name in COLUMNS if column_type(name) is float)
_INPUTS = ("row", "id", "label")  # equal on every machine
_FP32_EPSILON = 2.0**-23
# Smaller differences between two results count as rounding: relative to the result, and relative
# to the image's norm.
_RELATIVE_TOLERANCE, _IMAGE_TOLERANCE = 1e-5, 1e-7
# The factor by which DeepFool may enlarge a difference in the last bits; 6,000 was measured.
_GROWTH = 1e4


def relative_tolerance(difference: float) -> float:
    """The largest relative difference between two measurements of one perturbation's norm.

    Args:
        difference: the net's dependence on the batch on the measuring machine; see
            `pipeline.evaluation.self_check`.
    """
    return max(_RELATIVE_TOLERANCE, _GROWTH * difference)


def allowed_difference(manifests: list[Manifest]) -> float:
    """The relative difference that two measurements of logits and gradients may have."""
    kernels = [manifest.about.get("kernels") for manifest in manifests]
    same_kernels = all(other == kernels[0] for other in kernels)
    differences = [manifest.batch_difference for manifest in manifests]
    return max(*differences, 0.0 if same_kernels else _FP32_EPSILON)


def check_agreement(one: ResultRow, two: ResultRow, path: Path, difference: float) -> None:
    """Compare two measurements of one image.

    Args:
        one: a line of results.
        two: another line, of the same image.
        path: the file of ``two``, for messages.
        difference: allowed relative difference of logits and gradients; the attack amplifies it.
            Unless it is 0, the attack may have taken other steps, so only floats are compared.

    Raises:
        UserError: the measurements disagree.
    """
    limits = {
        "rtol": relative_tolerance(difference),
        "atol": _IMAGE_TOLERANCE * one["image_norm"],
        "equal_nan": True,
    }
    for name, value in one.items():
        if name not in two:  # written by an earlier version
            continue
        same = two[name] == value
        if not same and name in _FLOATS:
            same = bool(np.allclose(two[name], value, **limits))
        elif name not in _INPUTS:
            same |= difference > 0
        if not same:
            raise UserError(
                f"two results of {one['id']} disagree: {name} is {value}, and {two[name]} in "
                f"{path}; move one shard's folder away"
            )
