"""Whether two measurements of one image agree, as far as they can on their machines."""

from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.manifest import Manifest
from pipeline.evaluation.result_lines import Row
from pipeline.runtime.reproducibility import IMAGE_TOLERANCE, relative_tolerance

_FLOATS = ("image_norm", "perturbation_norm", "fgs_eps")
_INPUTS = ("row", "id", "label")  # equal on every machine
_FP32_EPSILON = 2.0**-23


def allowed_difference(manifests: list[Manifest]) -> float:
    """By how much two measurements of an image's logits and gradients may differ, relative."""
    kernels = [manifest.about.get("kernels") for manifest in manifests]
    same_kernels = all(other == kernels[0] for other in kernels)
    differences = [manifest.batch_difference for manifest in manifests]
    return max(*differences, 0.0 if same_kernels else _FP32_EPSILON)


def check_agreement(one: Row, two: Row, path: Path, difference: float) -> None:
    """Compare two measurements of one image.

    Args:
        one, two: lines of results.
        path: the second one's file.
        difference: of logits and gradients, which results enlarge. Unless it is 0, the attack may
            have taken another step, so that its counts and classes are not compared.
    """
    limits = {
        "rtol": relative_tolerance(difference),
        "atol": IMAGE_TOLERANCE * one["image_norm"],
        "equal_nan": True,
    }
    for name, value in one.items():
        same = two[name] == value
        if not same and name in _FLOATS:
            same = bool(np.isclose(two[name], value, **limits))
        elif name not in _INPUTS:
            same |= difference > 0
        if not same:
            raise UserError(
                f"two results of {one['id']} disagree: {name} is {value}, and {two[name]} in "
                f"{path}; move one shard's folder away"
            )
