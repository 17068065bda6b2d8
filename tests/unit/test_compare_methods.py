"""Two evaluations with several methods, compared by the smallest distance or by one method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import AttackConfig
from pipeline.errors import UserError
from pipeline.reports import compare, pairs
from pipeline.reports.pairs import EvaluatedImages
from tests.helpers.comparisons import FEW, evaluated
from tests.helpers.stored_results import manifest, names


def by_methods(folder: str, method: str, rows: list[int], **columns: Any) -> EvaluatedImages:
    """An evaluation by several methods, or one; the smallest distances from those by method."""
    identity = manifest(attack=AttackConfig(method=method)).identity
    distances = np.array(columns.pop("distances"))
    smallest = distances.min(axis=1)
    if identity.protocol.num_distances:
        columns["distances"] = distances
    columns |= {"perturbation_norm": smallest, "flipped": np.isfinite(smallest)}
    return evaluated(folder, rows, identity, **columns)


def test_the_smallest_distances_of_several_methods_are_compared() -> None:
    a = by_methods("a", "deepfool+ddn", [0, 1, 2], distances=[[2, 1], [3, 4], [5, np.inf]])
    b = by_methods("b", "deepfool+ddn", [0, 1, 2], distances=[[2, 4], [3, 1], [5, 4]])
    result = compare.compare(pairs.pair(a, b), FEW, 10)
    assert result.rho.a == pytest.approx((1 + 3 + 5) / 3 / 2)
    assert result.rho.b == pytest.approx((2 + 1 + 4) / 3 / 2)
    assert "\ndistance: smallest of deepfool, ddn\n" in compare.as_text(result)
    assert result.to_dict()["distance"] == "smallest of deepfool, ddn"


def test_one_of_several_methods_is_compared() -> None:
    a = by_methods("a", "deepfool+ddn", [0, 1, 2], distances=[[2, 1], [3, 4], [5, np.inf]])
    b = by_methods("b", "deepfool+ddn", [0, 1, 2], distances=[[2, 4], [3, 1], [6, 4]])
    by_deepfool = compare.compare(pairs.pair(a, b, "deepfool"), FEW, 10)
    assert (by_deepfool.rho.a, by_deepfool.rho.b) == pytest.approx((10 / 6, 11 / 6))
    assert "\ndistance: deepfool\n" in compare.as_text(by_deepfool)
    assert by_deepfool.largest_decreases == []
    by_ddn = compare.compare(pairs.pair(a, b, "ddn"), FEW, 10)
    assert (by_ddn.rho.num_images, by_ddn.rho.num_left_out) == (2, 1)  # it does not flip image 2
    assert (by_ddn.rho.a, by_ddn.rho.b) == pytest.approx((5 / 4, 5 / 4))
    assert [change.id for change in by_ddn.largest_decreases] == ["image 1"]
    assert by_ddn.accuracy.mcnemar_p == 1


def test_a_method_is_compared_with_evaluations_of_others() -> None:
    rows = [0, 2, 4]
    alone = by_methods("a", "deepfool", rows, distances=[[2], [3], [5]])
    both = by_methods("b", "best", rows, distances=[[2, 1, 9, 9], [4, 2, 9, 9], [7, 7, 6, 9]])
    result = compare.compare(pairs.pair(alone, both, "deepfool"), FEW, 10)
    assert (result.rho.a, result.rho.b) == pytest.approx((10 / 6, 13 / 6))
    assert (result.rho.num_equal, result.rho.num_larger) == (1, 2)
    with pytest.raises(UserError) as refusal:
        pairs.pair(alone, both)
    (line,) = str(refusal.value).splitlines()
    assert line == (
        "runs/a and runs/b were measured differently and cannot be compared: definition.methods: "
        "deepfool -> deepfool + superdeepfool, at most 14 projections + ddn, 200 steps + fmn, 200 "
        "steps; evaluate both with the same options and the same index, or compare one method that "
        "both ran: --method deepfool"
    )
    with pytest.raises(UserError, match="runs/a has no distances by ddn, but by deepfool; --meth"):
        pairs.pair(alone, both, "ddn")


def test_the_distance_of_the_line_to_another_image_is_no_methods() -> None:
    rows = [0, 2, 4]
    alone = by_methods("a", "ddn", rows, distances=[[1], [2], [3]], winner=[0, -1, 0])
    both = by_methods("b", "ddn+fmn", rows, distances=[[1, 2], [2, 2], [4, 2]])
    common = pairs.pair(alone, both, "ddn")
    assert common.ids[common.in_rho].tolist() == names([0, 4])
    assert pairs.image_changes(common)[0].ratio_difference == pytest.approx(0)


def test_a_method_with_other_options_is_refused() -> None:
    rows = [0, 1, 2]
    distances = [[1.0, 2.0]] * 3
    a = by_methods("a", "deepfool+ddn", rows, distances=distances)
    other = AttackConfig(method="deepfool+ddn", descent_steps=1000)
    b = replace(a, folder=Path("runs/b"), identity=manifest(attack=other).identity)
    assert len(pairs.pair(a, b, "deepfool").ids) == 3
    with pytest.raises(UserError) as refusal:
        pairs.pair(a, b, "ddn")
    assert "definition.methods: ddn, 200 steps -> ddn, 1000 steps; evaluate" in str(refusal.value)
    assert "--method" not in str(refusal.value)
    longer = manifest(attack=AttackConfig(method="deepfool", max_iterations=50)).identity
    with pytest.raises(UserError, match=r"definition.max_iterations: 5 -> 50; evaluate"):
        pairs.pair(a, replace(b, identity=longer), "deepfool")
