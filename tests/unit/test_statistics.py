"""The statistics of an evaluation's samples."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import AttackConfig
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.evaluation.merge import merge_shards
from pipeline.evaluation.protocol import rho_name
from pipeline.evaluation.statistics import (
    accuracy_at,
    by_class,
    distance_warnings,
    eps_ref,
    summarize,
)
from pipeline.evaluation.summary import format_summary, summary_of
from tests.helpers.stored_results import PROTOCOL, manifest, samples, shard


def test_summary_counts_every_sample() -> None:
    statistics = summarize(samples([0, 1, 2, 3]), PROTOCOL)
    assert statistics.accuracy == 0.5
    assert (statistics.rho_name, statistics.rho) == ("rho2", pytest.approx(1.25))
    assert statistics.num_unflipped == 1
    assert statistics.ratio_median == pytest.approx(1.25)
    assert statistics.fgs.accuracy == [(0.1, 0.5, 2), (0.2, 0.25, 1)]
    assert summarize(samples([0, 5, 6]), PROTOCOL).top5_accuracy == pytest.approx(1 / 3)


def test_what_has_no_ratio_is_counted_apart() -> None:
    stored = samples(
        [0, 1, 2, 3],
        stuck=[True, False, False, False],
        image_norm=[2.0, 0.0, 2.0, 2.0],
        perturbation_norm=[float("nan"), 1.0, 3.0, 5.0],
    )
    statistics = summarize(stored, PROTOCOL)
    assert statistics.rho == pytest.approx(2.0)
    assert statistics.num_without_gradient == 1
    assert statistics.num_zero_images == 1
    assert statistics.num_samples == 4
    nothing = summarize(samples([0], stuck=[True]), PROTOCOL)
    assert nothing.rho is nothing.ratio_median is nothing.ratio_quantiles["0.05"] is None
    assert [*distance_warnings(nothing)] == ["none of 1 images has a distance: rho2 is not defined"]
    (row,) = by_class(samples([0], stuck=[True]), ["zero"])
    assert row["mean_ratio"] is row["median_ratio"] is None


def test_an_attack_that_flips_few_images_is_named() -> None:
    distances = [[np.inf, row + 1.0] for row in range(4)]
    stored = samples([0, 1, 2, 3], distances=distances, queries=[9] * 4, flipped=[True] * 4)
    protocol = manifest(attack=AttackConfig(method="deepfool+ddn")).identity.protocol
    statistics = summarize(stored, protocol)
    assert statistics.diagnostics.methods["deepfool"]["mean"] is None
    assert statistics.diagnostics.methods["ddn"]["mean"] == statistics.rho == pytest.approx(1.25)
    assert [*distance_warnings(statistics)] == [
        "deepfool found no perturbation for 4 of 4 images; its mean is over the others"
    ]


def test_eps_ref_is_where_half_of_the_images_are_lost() -> None:
    stored = samples([0, 1, 2, 3], fgs_eps=[0.4, 0.1, 0.2, float("inf")])
    assert eps_ref(stored) == 0.2
    assert accuracy_at(stored, 0.2) == 0.5
    assert accuracy_at(stored, 0.19999) == 0.75
    assert eps_ref(samples([0, 1, 2], fgs_eps=[0.3, 0.1, 0.2])) == 0.2
    assert eps_ref(samples([0, 1, 2, 3], fgs_eps=[0.0, 0.0, 0.2, 0.3])) is None
    assert eps_ref(samples([0, 1], fgs_eps=[float("inf")] * 2)) is None


@pytest.mark.parametrize(
    ("prediction", "fgs_eps", "reason"),
    [
        (1, 0.0, "at most half of the clean images are classified correctly"),
        (0, np.inf, "no eps of the search leaves at most half of the images correct"),
    ],
)
def test_the_summary_says_why_there_is_no_eps_ref(
    tmp_path: Path, prediction: int, fgs_eps: float, reason: str
) -> None:
    columns = {"prediction": [0, 0, prediction, prediction], "fgs_eps": [0.1, 0.1, *[fgs_eps] * 2]}
    if prediction == 0:
        columns["fgs_eps"][1] = np.inf
    shard(tmp_path, 0, 1, [0, 1, 2, 3], manifest=manifest(4), **columns)
    text = format_summary(summary_of(merge_shards(tmp_path)))
    assert f"eps_ref none: {reason}" in text


def test_classes() -> None:
    rows = by_class(samples([0, 1, 2, 3], label=[0, 0, 1, 1]), ["zero"])
    assert [(r["name"], r["num_samples"], r["accuracy"]) for r in rows] == [
        ("zero", 2, 0.5),
        ("1", 2, 0.5),
    ]
    assert rows[1]["mean_ratio"] == pytest.approx(1.75)


def test_lower_bounds_and_distances_of_the_same_images() -> None:
    nan, inf = float("nan"), float("inf")
    stored = samples(
        [0, 1, 2, 3, 4, 5],
        queries=[9] * 6,
        lower_bound=[0.5, 0.5, nan, 1.0, 0.5, 0.5],
        bound_exact=[False, False, False, True, False, False],
        upper_bound=[0.8, inf, nan, 9.0, nan, 6.0],
        image_norm=[2.0, 2.0, 2.0, 2.0, 0.0, 2.0],
        stuck=[False, False, False, False, False, True],
    )  # 1 is not flipped, and has no upper bound; 2 has no lower bound, 4 no norm
    diagnostics = summarize(stored, PROTOCOL).diagnostics
    assert diagnostics is not None
    bound = diagnostics.lower_bound
    assert bound is not None
    assert (bound["num_images"], bound["num_exact"]) == (3, 1)
    assert bound["mean"] == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert bound["mean_upper"] == pytest.approx((0.4 + 2.0 + 3.0) / 3)
    assert (bound["median"], bound["quantiles"]["0.5"]) == (0.25, 0.25)


def test_diagnostics_of_earlier_versions_have_no_lower_bound() -> None:
    diagnostics = summarize(samples([0, 1], queries=[1, 1]), PROTOCOL).diagnostics
    assert diagnostics is not None
    assert diagnostics.lower_bound is None
    values = diagnostics.to_dict()
    del values["lower_bound"]
    assert Diagnostics.from_dict(values) == diagnostics


def test_the_ratio_is_named_after_its_norm() -> None:
    norms = (2, 2.0, "2", 1.5, "inf", float("inf"))
    assert [rho_name(norm) for norm in norms] == ["rho2"] * 3 + ["rho1.5"] + ["rho_inf"] * 2
