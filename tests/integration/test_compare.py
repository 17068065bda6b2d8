"""tools/report.py: the curves and the comparison of evaluations that pipeline/evaluate.py made."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.reports import figures, runs
from tests.helpers.in_process import EVALUATE, call, succeed
from tests.helpers.stored_results import evaluation, finetuning

SCRIPT = "tools/report.py"


@pytest.fixture(scope="module")
def untrained_evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an MLP with its initial weights, on the images of `whole_evaluation`, without FGS."""
    folder = tmp_path_factory.mktemp("untrained") / "initial"
    options = ("--model.name", "mlp", "--evaluation.num_images", 300, "--output", folder)
    succeed(EVALUATE, *options)
    return folder


@pytest.fixture(scope="module")
def evaluation_by_methods(mlp_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the net and the images of `whole_evaluation`, by three methods."""
    folder = tmp_path_factory.mktemp("methods") / "three"
    attack = ("--evaluation.attack.method", "deepfool+superdeepfool+ddn")
    options = ("--model.weights", mlp_weights, "--evaluation.num_images", 300, *attack)
    succeed(EVALUATE, *options, "--evaluation.attack.descent_steps", 10, "--output", folder)
    return folder


def rows_by_id(folder: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(folder / "samples.parquet").to_pylist()}


def test_two_evaluations_are_compared(
    whole_evaluation: Path, untrained_evaluation: Path, tmp_path: Path
) -> None:
    evaluations = (f"trained={whole_evaluation}", f"initial={untrained_evaluation}")
    table = tmp_path / "new" / "pairs.csv"
    output = succeed(SCRIPT, "compare", *evaluations, "--json", "--worst", 3, "--out", table)
    values = json.loads(output)
    a, b = rows_by_id(whole_evaluation), rows_by_id(untrained_evaluation)
    assert a.keys() == b.keys()
    assert (values["a"], values["b"], values["num_images"]) == ("trained", "initial", 300)
    summaries = [
        json.loads((folder / "summary.json").read_text())
        for folder in (whole_evaluation, untrained_evaluation)
    ]
    for name, summary in zip("ab", summaries, strict=True):
        assert values["rho"][name] == pytest.approx(summary["rho2"])
        assert values["accuracy"][name] == summary["accuracy"]
    interval = values["rho"]["difference"]
    assert interval["value"] == pytest.approx(summaries[1]["rho2"] - summaries[0]["rho2"])
    assert interval["low"] < interval["value"] < interval["high"]
    ratio = {
        name: [r["perturbation_norm"] / r["image_norm"] for r in (a[name], b[name])] for name in a
    }
    worst = sorted(a, key=lambda name: ratio[name][1] - ratio[name][0])
    assert [change["id"] for change in values["largest_decreases"]] == worst[:3]
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == worst
    assert [float(lines[0][f"ratio_{name}"]) for name in "ab"] == pytest.approx(ratio[worst[0]])
    lost = [name for name, row in a.items() if row["prediction"] == row["label"]]
    lost = [name for name in lost if b[name]["prediction"] != b[name]["label"]]
    assert sorted(values["accuracy"]["only_a_correct"]) == sorted(lost)
    text = succeed(SCRIPT, "compare", *evaluations, "--level", 0.9, "--resamples", 50, "--seed", 3)
    assert "(90 % bootstrap intervals, 50 resamples, seed 3)" in text
    assert f"  correct only in trained: {len(lost)} (" in text


def test_curves_of_evaluations(
    whole_evaluation: Path, untrained_evaluation: Path, tmp_path: Path
) -> None:
    with (whole_evaluation / "curve.csv").open() as file:
        points = [(float(p["budget"]), float(p["accuracy"])) for p in csv.DictReader(file)]
    rows = rows_by_id(whole_evaluation).values()
    correct = np.array([row["prediction"] == row["label"] for row in rows])
    distance = np.array([row["perturbation_norm"] for row in rows])
    distance[[not row["flipped"] for row in rows]] = np.inf
    assert len(points) == 1 + correct.sum()
    for budget, accuracy in points[::17]:
        assert accuracy == np.mean(correct & (distance > budget))
    board = EventAccumulator(str(whole_evaluation / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert board.Images("evaluate/accuracy_under_budget")[0].width > 300
    out = tmp_path / "curves"
    evaluations = (f"trained={whole_evaluation}", untrained_evaluation)
    printed = succeed(SCRIPT, "figures", "curves", *evaluations, "--out", out)
    assert printed.split() == [f"{out}.png", f"{out}.svg"]
    assert 'id="curve: initial"' in Path(f"{out}.svg").read_text()
    drawn = figures.curves([runs.run_of_argument(str(run)) for run in evaluations])
    line = drawn.axes[0].lines[0]
    assert line.get_label() == "trained"
    assert line.get_xydata()[0] == pytest.approx([0, 100 * points[0][1]])


def test_an_evaluation_by_several_methods_is_compared_by_one(
    whole_evaluation: Path, evaluation_by_methods: Path
) -> None:
    evaluations = (f"alone={whole_evaluation}", f"three={evaluation_by_methods}")
    ended = call(SCRIPT, "compare", *evaluations)
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert "definition.methods: deepfool -> deepfool + superdeepfool, at most" in line
    assert line.endswith("or compare one method that both ran: --method deepfool")
    values = json.loads(succeed(SCRIPT, "compare", *evaluations, "--method", "deepfool", "--json"))
    rho = values["rho"]
    assert (values["distance"], values["num_images"]) == ("deepfool", 300)
    assert values["num_without_hash"] == 0
    assert rho["num_equal"] == rho["num_images"] > 290  # the same net
    assert values["accuracy"]["only_a_correct"] == values["accuracy"]["only_b_correct"] == []
    ended = call(SCRIPT, "compare", *evaluations, "--method", "ddn")
    assert (ended.code, "has no distances by ddn, but by deepfool" in ended.stderr) == (2, True)
    ended = call(SCRIPT, "table", *evaluations, "--format", "csv")
    assert "methods: None -> ['deepfool', " in ended.stderr
    assert "measure:" not in ended.stderr  # a sentence that follows from the methods
    alone, three = csv.DictReader(ended.stdout.splitlines())
    summary = json.loads((evaluation_by_methods / "summary.json").read_text())
    assert float(three["rho2_ddn"]) == summary["diagnostics"]["methods"]["ddn"]["mean"]
    assert float(three["rho2_best"]) == summary["diagnostics"]["best"]
    assert float(three["deepfool_over_best"]) > 1
    assert float(alone["rho2_deepfool"]) == float(alone["rho2"])
    assert alone["rho2_best"] == ""


def test_curves_by_method(
    whole_evaluation: Path, evaluation_by_methods: Path, tmp_path: Path
) -> None:
    with (evaluation_by_methods / "curve.csv").open() as file:
        points = list(csv.DictReader(file))
    rows = rows_by_id(whole_evaluation).values()
    correct = np.array([row["prediction"] == row["label"] for row in rows])
    distance = np.array([row["perturbation_norm"] for row in rows])
    distance[[not row["flipped"] for row in rows]] = np.inf
    assert len(points) > 500
    for point in points[::17]:
        robust = correct & (distance > float(point["budget"]))
        assert float(point["accuracy_deepfool"]) == robust.mean()
        assert float(point["accuracy"]) <= float(point["accuracy_ddn"])
    board = EventAccumulator(str(evaluation_by_methods / "tensorboard"))
    board.Reload()
    assert board.Images("evaluate/accuracy_under_budget")
    evaluations = (f"alone={whole_evaluation}", f"three={evaluation_by_methods}")
    out = tmp_path / "curves"
    succeed(SCRIPT, "figures", "curves", *evaluations, "--out", out)
    svg = Path(f"{out}.svg").read_text()
    names = ["alone, deepfool", *(f"three, {n}" for n in ("best", "deepfool", "ddn"))]
    assert all(f'id="curve: {name}' in svg for name in names)
    drawn = figures.curves([runs.run_of_argument(str(run)) for run in evaluations])
    lines = drawn.axes[0].lines
    assert len(lines) == 5
    assert len({line.get_color() for line in lines}) == 2  # of the runs
    assert len({str(line._dash_pattern) for line in lines}) == 4  # of the methods and the best


def test_what_never_flipped_is_stated(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", 1.0, flipped=[row not in (1, 4, 8) for row in range(40)])
    figure = figures.curves([runs.read(folder), runs.read(folder)])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [f"{folder} (2 never flipped)"]  # image 1 is misclassified


def changed(folder: Path, **definition: object) -> Path:
    """Change the protocol in an evaluation's summary."""
    path = folder / "summary.json"
    values = json.loads(path.read_text())
    rho = values.pop(f"rho{values['definition']['norm']}")
    values["definition"] |= definition
    norm = values["definition"]["norm"]
    values["rho_inf" if norm == "inf" else f"rho{norm}"] = rho
    path.write_text(json.dumps(values))
    return folder


def test_mistakes(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", 1.0, image_hash=[7] * 40)
    hashed = evaluation(tmp_path / "hashed", 1.0, image_hash=[8, *[7] * 39])
    longer, pixels, linf, cut, no_ids = (
        shutil.copytree(one, tmp_path / name) for name in ("longer", "pixels", "linf", "cut", "ids")
    )
    changed(longer, max_iterations=50)
    changed(pixels, space="pixels in [0, 1], normalisation inside the model")
    changed(linf, norm="inf")
    (cut / "samples.parquet").write_bytes((one / "samples.parquet").read_bytes()[:-100])
    table = pq.read_table(no_ids / "samples.parquet")
    pq.write_table(table.drop_columns("id"), no_ids / "samples.parquet")
    tuned = finetuning(tmp_path / "ft", 15, 25, 0.97, 0.2)
    out = ("--out", tmp_path / "x")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("compare", one), "the following arguments are required: B; --help shows the usage"),
        (("compare", one, tmp_path / "nothing"), "no file"),
        (("compare", one, longer), r"definition.max_iterations: 5 -> 50; evaluate both with"),
        (("compare", one, tuned), "is a fine-tuning; this needs runs of evaluate.py"),
        (("compare", one, cut), "samples.parquet cannot be read"),
        (("compare", one, no_ids), "samples.parquet has no ids"),
        (("compare", one, hashed), "have other pixels in 1 of 40 images (image 0) and cannot be"),
        (("compare", one, one, "--method", "ddn"), "has no distances by ddn, but by deepfool;"),
        (("compare", one, one, "--level", 95), "--level must be above 0 and below 1, got 95"),
        (("compare", one, one, "--resamples", 0), "--resamples must be at least 1, got 0"),
        (("compare", one, one, "--wurst", 3), "no option --wurst; did you mean --worst"),
        (("compare", one, one, "--out", tmp_path), "Is a directory; give another --out"),
        (("figures", "curves", one, tuned, *out), "is a fine-tuning"),
        (("figures", "curves", one, linf, *out), "rho_inf"),
        (("figures", "curves", one, pixels, *out), "on one axis need one evaluation.space"),
    ]
    for options, message in cases:
        ended = call(SCRIPT, *options)
        assert ended.code == 2, options
        lines = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, ended.stderr
        assert message in lines[0]
