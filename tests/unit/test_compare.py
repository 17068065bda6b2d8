"""Two evaluations of the same images, compared image by image."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from pipeline.errors import UserError
from pipeline.evaluation.manifest import Identity
from pipeline.reports import compare, pairs, runs
from pipeline.reports.paired_statistics import (
    Interval,
    Resampling,
    mcnemar,
    mean_difference,
    mean_ratio,
)
from tests.helpers.comparisons import FEW, evaluated
from tests.helpers.stored_results import evaluation, manifest, names


@pytest.mark.parametrize("limit", [40, 50])
def test_a_limit_that_leaves_out_no_image_is_none(tmp_path: Path, limit: int) -> None:
    everything, limited = manifest(40), manifest(40, num_images=limit)
    assert everything.differences(limited) == ""
    assert limited.to_dict()["identity"]["num_images"] is None
    assert manifest(40, num_images=39).identity.num_images == 39
    folders = [evaluation(tmp_path / name, 1.0) for name in ("none", "limited")]
    path = folders[1] / "summary.json"  # as earlier versions wrote it
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_images": limit}))
    one, two = (runs.read(folder) for folder in folders)
    assert one.evaluation.identity == two.evaluation.identity
    assert pairs.pair(pairs.read(one), pairs.read(two)).num_only_in_a == 0


def test_intervals_cover_a_known_difference_and_ratio() -> None:
    """Of 200 simulated pairs of evaluations, of 400 images each."""
    rng = np.random.default_rng(0)
    covered = {"difference": 0, "ratio": 0}
    for seed in range(200):
        a = rng.lognormal(sigma=0.5, size=400)
        b = 1.2 * a * rng.lognormal(sigma=0.2, size=400)
        mean_a = math.exp(0.5**2 / 2)
        mean_b = 1.2 * mean_a * math.exp(0.2**2 / 2)
        options = Resampling(num_resamples=500, seed=seed)
        difference, ratio = mean_difference(a, b, options), mean_ratio(a, b, options)
        assert difference.value == pytest.approx(b.mean() - a.mean())
        assert ratio.value == pytest.approx(b.mean() / a.mean())
        covered["difference"] += difference.low <= mean_b - mean_a <= difference.high
        covered["ratio"] += ratio.low <= mean_b / mean_a <= ratio.high
    assert all(180 <= number <= 198 for number in covered.values()), covered


def test_intervals_keep_pairs_together() -> None:
    rng = np.random.default_rng(0)
    a = rng.lognormal(size=50)
    shifted = mean_difference(a, a + 1, FEW)
    assert (shifted.low, shifted.high) == pytest.approx((1, 1))
    scaled = mean_ratio(a, 3 * a, FEW)
    assert (scaled.low, scaled.high) == pytest.approx((3, 3))


def test_intervals_follow_level_and_seed() -> None:
    a, b = np.random.default_rng(0).lognormal(size=(2, 100))
    wide, narrow = (
        mean_difference(a, b, Resampling(num_resamples=2000, level=level)) for level in (0.95, 0.5)
    )
    assert wide.low < narrow.low < wide.value < narrow.high < wide.high
    standard_error = (b - a).std(ddof=1) / 10
    assert (wide.high - wide.low) == pytest.approx(2 * 1.96 * standard_error, rel=0.08)
    assert mean_ratio(a, b, FEW) == mean_ratio(a, b, FEW)
    assert mean_ratio(a, b, FEW) != mean_ratio(a, b, replace(FEW, seed=1))


def test_batches_of_resamples_do_not_change_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).lognormal(size=(2, 100))
    expected = mean_difference(a, b, FEW)
    monkeypatch.setattr("pipeline.reports.paired_statistics._BATCH_NUMBERS", 1500)
    assert mean_difference(a, b, FEW) == expected


def test_a_ratio_to_zero_is_not_defined() -> None:
    zeros, b = np.zeros(5), np.ones(5)
    assert mean_ratio(zeros, b, FEW) is None
    assert mean_difference(zeros, b, FEW) == Interval(1, 1, 1)


def test_mcnemar() -> None:
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1
    assert mcnemar(0, 1) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)
    for only_a, only_b in [(2, 9), (20, 56), (300, 240), (30, 31)]:
        exact = binomtest(only_a, only_a + only_b, 0.5).pvalue
        assert mcnemar(only_a, only_b) == pytest.approx(exact)
    # For many discordant pairs, the usual approximation with the continuity correction.
    approximation = chi2.sf((abs(3000 - 3150) - 1) ** 2 / 6150, 1)
    assert mcnemar(3000, 3150) == pytest.approx(approximation, rel=0.01)


def test_images_are_paired_by_id() -> None:
    nan = float("nan")
    a = evaluated("a", [0, 1, 2, 3, 4, 5], perturbation_norm=[1, 2, 3, 4, 5, 6])
    b = evaluated(
        "b",
        [9, 5, 4, 3, 2, 1],
        perturbation_norm=[9, 1, 5, nan, 6, 4],
        prediction=[0, 0, 0, 0, 1, 0],
        stuck=[False, False, False, True, False, False],
    )
    common = pairs.pair(a, b)
    assert common.ids.tolist() == names([1, 2, 3, 4, 5])
    assert common.a.row.tolist() == common.b.row.tolist() == [1, 2, 3, 4, 5]
    result = compare.compare(common, FEW, num_worst=10)
    assert (result.a, result.b) == ("a", "b")
    assert (result.num_images, result.num_only_in_a, result.num_only_in_b) == (5, 1, 1)
    rho = result.rho
    assert (rho.name, rho.num_images, rho.num_left_out) == ("rho2", 4, 1)
    assert rho.a == pytest.approx((2 + 3 + 5 + 6) / 4 / 2)
    assert rho.b == pytest.approx((4 + 6 + 5 + 1) / 4 / 2)
    assert (rho.num_smaller, rho.num_equal, rho.num_larger) == (1, 1, 2)
    assert (rho.num_unflipped_a, rho.num_unflipped_b) == (1, 1)
    accuracy = result.accuracy
    assert (accuracy.a, accuracy.b) == (2 / 5, 4 / 5)  # image 3 is in the accuracy
    assert accuracy.only_a_correct == ["image 2"]
    assert accuracy.only_b_correct == names([1, 3, 5])
    assert accuracy.mcnemar_p == mcnemar(1, 3)
    (worst,) = result.largest_decreases
    assert worst.id == "image 5"
    assert (worst.ratio_a, worst.ratio_b, worst.ratio_difference) == (3.0, 0.5, -2.5)
    assert compare.compare(common, FEW, num_worst=0).largest_decreases == []
    assert [change.id for change in pairs.image_changes(common)] == names([5, 4, 1, 2, 3])
    lines = pairs.as_csv(common).splitlines()
    assert lines[0].startswith("id,label,prediction_a,prediction_b,ratio_a,ratio_b,ratio_diff")
    assert lines[1] == "image 5,0,1,0,3.0,0.5,-2.5,True,True"
    assert lines[-1] == "image 3,0,1,0,,,,True,True"


def test_text_and_json() -> None:
    a = evaluated("a", [0, 1, 2, 3], perturbation_norm=[1, 2, 3, 4])
    b = evaluated("b", [0, 1, 2, 3], perturbation_norm=[2, 4, 6, 2], prediction=[0, 0, 0, 0])
    result = compare.compare(pairs.pair(a, b), FEW, 10)
    text = compare.as_text(result)
    assert "4 images in both; 0 only in a, 0 only in b" in text
    assert "rho2 over 4 of them (0 have no ratio in one or both): a 1.25, b 1.75" in text
    assert "accuracy: a 50.00%, b 100.00%, difference +50.00 points, McNemar's p 0.5" in text
    assert "correct only in b: 2 (image 1, image 3)" in text
    assert text.splitlines()[-1] == "  image 3: 2 -> 1"
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["rho"]["difference"]["value"] == 0.5
    assert values["rho"]["resampling"] == {"level": 0.95, "num_resamples": 200, "seed": 0}
    assert values["largest_decreases"][0]["id"] == "image 3"
    assert values["accuracy"]["only_b_correct"] == names([1, 3])


def changed(**changes: Any) -> Identity:
    return replace(manifest().identity, **changes)


PROTOCOL, INPUT = manifest().identity.protocol, manifest().identity.input
REFUSED: list[tuple[Callable[[], Identity], str]] = [
    (lambda: changed(index="2"), "index: 1 -> 2"),
    (lambda: changed(num_images=3), "num_images: None -> 3"),
    (lambda: changed(input=replace(INPUT, crop=7)), "input.crop: 8 -> 7"),
    (lambda: changed(protocol=replace(PROTOCOL, norm="inf")), r"definition.norm: 2 -> inf"),
    (
        lambda: changed(protocol=replace(PROTOCOL, max_iterations=50, overshoot=0.5)),
        r"definition.max_iterations: 5 -> 50; definition.overshoot: 0.02 -> 0.5",
    ),
]


@pytest.mark.parametrize(("identity", "difference"), REFUSED, ids=[line for _, line in REFUSED])
def test_other_measurements_are_refused(identity: Callable[[], Identity], difference: str) -> None:
    a, b = evaluated("a", [0, 1, 2]), evaluated("b", [0, 1, 2], identity())
    with pytest.raises(UserError) as refusal:
        pairs.pair(a, b)
    (line,) = str(refusal.value).splitlines()
    assert line == (
        f"runs/a and runs/b were measured differently and cannot be compared: {difference}; "
        "evaluate both with the same options and the same index"
    )


def test_other_nets_and_fgs_are_compared() -> None:
    other = changed(model="lenet", weights="1", protocol=replace(PROTOCOL, fgs=None))
    assert len(pairs.pair(evaluated("a", [0, 1, 2]), evaluated("b", [0, 1, 2], other)).ids) == 3


def test_too_few_common_images_are_refused() -> None:
    a = evaluated("a", [0, 1, 2])
    with pytest.raises(UserError, match="have a ratio of 1 images; a comparison needs at least 2"):
        pairs.pair(a, evaluated("b", [2, 3, 4]))
    with pytest.raises(UserError, match="have a ratio of 0 images"):
        pairs.pair(a, evaluated("b", [3, 4]))


def test_repeated_ids_are_refused() -> None:
    once, twice = evaluated("a", [0, 1, 2, 3]), evaluated("b", [0, 1, 2, 2, 3])
    for first, second in ((once, twice), (twice, once)):
        with pytest.raises(UserError, match=r"runs/b has several images with the same id \("):
            pairs.pair(first, second)


def test_other_pixels_are_refused() -> None:
    a = evaluated("a", [0, 1, 2, 3], image_hash=[5, 6, 7, 0])
    same = evaluated("b", [3, 2, 1, 0], image_hash=[9, 7, 6, 5])
    common = pairs.pair(a, same)
    assert common.num_without_hash == 1
    note = "\npixels of 1 images were not compared: results of earlier versions have no hash"
    assert note in compare.as_text(compare.compare(common, FEW, 10))
    with pytest.raises(UserError) as refusal:
        pairs.pair(a, evaluated("b", [0, 1, 2, 4], image_hash=[5, 8, 8, 9]))
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(
        "runs/a and runs/b have other pixels in 2 of 3 images (image 1, image 2) and cannot be "
    )
    hashed = evaluated("a", [0, 1], image_hash=[5, 6])
    text = compare.as_text(compare.compare(pairs.pair(hashed, replace(hashed, label="b")), FEW, 1))
    assert "pixels" not in text


def test_equal_labels_are_replaced_by_folders() -> None:
    a, b = evaluated("a", [0, 1, 2]), evaluated("b", [0, 1, 2])
    assert pairs.pair(a, replace(b, label="a")).labels == ("runs/a", "runs/b")
