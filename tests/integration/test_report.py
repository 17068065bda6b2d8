"""tools/report.py: tables and figures hold what the runs found."""

import csv
import io
import json
import re
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from pipeline.reports import figures, runs, sweep_figure, table
from pipeline.reports.sweep_figure import SweepPoint
from tests.helpers.in_process import call
from tests.helpers.runs import Run, expect_error
from tests.helpers.stored_results import evaluation, finetuning

SCRIPT = "tools/report.py"
SVG = "{http://www.w3.org/2000/svg}"


def svg_lines(path: Path) -> dict[str, np.ndarray]:
    """The drawn points of every named line, in the file's own units."""
    points_by_name = {}
    for group in ET.parse(path).iter(f"{SVG}g"):
        name, line = group.get("id", ""), group.find(f"{SVG}path")
        if ": " in name and line is not None:
            numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", line.get("d"))
            points_by_name[name] = np.array(numbers, float).reshape(-1, 2)
    return points_by_name


def assert_drawn(points: np.ndarray, values: np.ndarray) -> None:
    """The points are the values but for a scale and an origin of each axis; y points down."""
    assert points.shape == values.shape
    for axis, sign in ((0, 1), (1, -1)):
        slope, origin = np.polyfit(values[:, axis], points[:, axis], 1)
        assert sign * slope > 0
        assert np.allclose(slope * values[:, axis] + origin, points[:, axis], atol=1e-3)


def test_epochs_are_drawn_from_the_history(tmp_path: Path) -> None:
    one = finetuning(tmp_path / "one", 15, 25, 0.97, 0.2)
    two = finetuning(tmp_path / "two", 15, 25, 0.96, 0.3)
    out = tmp_path / "figures" / "fig2"
    ended = call(SCRIPT, "figures", "epochs", f"Deep Defense={one}", two, "--out", out)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.split() == [f"{out}.png", f"{out}.svg"]
    assert Path(f"{out}.png").read_bytes()[:4] == b"\x89PNG"
    lines = svg_lines(Path(f"{out}.svg"))
    assert len(lines) == 4
    epoch = [-2.0, 0.0, 1.0]
    assert_drawn(lines["accuracy: Deep Defense"], np.array([epoch, [0.9, 0.95, 0.97]]).T)
    assert_drawn(lines["rho2: two"], np.array([epoch, [0.1, 0.11, 0.3]]).T)
    # Both lines of a panel share its axes: the first point is the same, the last is not.
    first, second = lines["accuracy: Deep Defense"], lines["accuracy: two"]
    assert np.allclose(first[0], second[0])
    assert first[-1, 1] < second[-1, 1]
    figure = figures.epochs([runs.read(one)])
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([90, 95, 97])
    assert figure.axes[1].get_ylabel() == r"$\rho_2$"


def test_lines_can_be_told_apart_in_grey(tmp_path: Path) -> None:
    finetunings = [
        runs.read(finetuning(tmp_path / str(k), 15, 25, 0.9 + k / 100, 0.2)) for k in range(6)
    ]
    lines = figures.epochs(finetunings).axes[0].lines
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == 6
    assert len({line.get_marker() for line in lines}) == 6


def test_a_sweep_has_a_line_for_each_value(tmp_path: Path) -> None:
    points = {
        (5, 10): (0.97, 0.3),
        (5, 5): (0.96, 0.4),
        (15, 5): (0.93, 0.6),
        (15, 10): (0.95, 0.5),
    }
    folders = [
        finetuning(tmp_path / f"{lam}-{c}", lam, c, *accuracy_and_rho)
        for (lam, c), accuracy_and_rho in points.items()
    ]
    out = tmp_path / "fig3"
    ended = call(SCRIPT, "figures", "sweep", *folders, "--out", out)
    assert ended.code == 0, ended.stderr
    figure = sweep_figure.sweep([runs.read(f) for f in folders], "regularizer.lam", "regularizer.c")
    (axis,) = figure.axes
    drawn = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert drawn["lam 5"] == pytest.approx(np.array([[0.4, 96], [0.3, 97]]))
    assert drawn["lam 15"] == pytest.approx(np.array([[0.6, 93], [0.5, 95]]))
    assert [text.get_text() for text in axis.texts] == ["5", "10", "5", "10"]
    every = np.concatenate([line for _, line in sorted(svg_lines(Path(f"{out}.svg")).items())])
    assert_drawn(every, np.concatenate([drawn["lam 15"], drawn["lam 5"]]))
    masked = [f"conv1={folders[0]}", f"conv1={folders[1]}", f"fc1={folders[2]}"]
    figure = sweep_figure.sweep(
        [runs.run_of_argument(name) for name in masked], "label", "regularizer.c"
    )
    assert [line.get_label() for line in figure.axes[0].lines] == ["conv1", "fc1"]
    ended = call(SCRIPT, "figures", "sweep", *folders, "--by", "regularizer.nothing", "--out", out)
    assert ended.code == 2
    assert "config.yaml has no option regularizer.nothing" in ended.stderr


def test_numbers_that_would_lie_on_one_another_are_left_out(tmp_path: Path) -> None:
    points = {5: (0.96, 0.4), 10: (0.9701, 0.3001), 15: (0.97, 0.3)}  # a line's ends stay
    folders = [
        finetuning(tmp_path / f"{c}", 5, c, *accuracy_and_rho)
        for c, accuracy_and_rho in points.items()
    ]
    figure = sweep_figure.sweep([runs.read(f) for f in folders], "regularizer.lam", "regularizer.c")
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "15"]


def test_a_sweep_shows_mean_and_spread_of_several_seeds() -> None:
    """The points of two seeds, in another order than that of the line."""
    points = [
        SweepPoint(15.0, 25, 0.26, 0.980),
        SweepPoint(15.0, 5, 0.40, 0.962),
        SweepPoint(15.0, 5, 0.30, 0.966),
        SweepPoint(15.0, 25, 0.24, 0.990),
        SweepPoint(5.0, 5, 0.20, 0.991),
    ]
    (axis,) = sweep_figure.draw(points, "lam", "c").axes
    five, fifteen = axis.lines[0], axis.lines[-1]
    assert [five.get_label(), fifteen.get_label()] == ["lam 5", "lam 15"]
    assert five.get_xydata() == pytest.approx(np.array([[0.20, 99.1]]))
    assert fifteen.get_xydata() == pytest.approx(np.array([[0.35, 96.4], [0.25, 98.5]]))
    (bars,) = axis.containers  # of the line with several runs at a point
    horizontal, vertical = (bar.get_segments() for bar in bars[2])
    spreads = statistics.stdev([0.40, 0.30]), 100 * statistics.stdev([0.962, 0.966])
    assert np.ptp(horizontal[0][:, 0]) == pytest.approx(2 * spreads[0])
    assert np.ptp(vertical[0][:, 1]) == pytest.approx(2 * spreads[1])


def test_a_sweep_of_numbers_and_words() -> None:
    points = [SweepPoint("None", "auto", 0.1, 0.9), SweepPoint("None", 5, 0.2, 0.8)]
    points += [SweepPoint(2.0, 5, 0.3, 0.7)]
    (axis,) = sweep_figure.draw(points, "max_grad_norm", "max_images").axes
    assert [line.get_label() for line in axis.lines] == ["max_grad_norm 2", "max_grad_norm None"]
    assert axis.lines[1].get_xydata().tolist() == [[0.2, 80], [0.1, 90]]


def test_a_label_with_dollars_is_no_formula(tmp_path: Path) -> None:
    tuned = runs.read(finetuning(tmp_path / "a", 15, 25, 0.9, 0.2), "cost_$5_vs_$6")
    for figure in (figures.epochs([tuned]), figures.epochs([tuned] * 6)):
        figures.save(figure, tmp_path / "figure")
    assert "cost_$5_vs_$6" in (tmp_path / "figure.svg").read_text()


def test_ratios_before_and_after(tmp_path: Path) -> None:
    before = evaluation(tmp_path / "ref", 1.0)
    after = evaluation(tmp_path / "dd", 2.0)
    out = tmp_path / "ratios"
    ended = call(SCRIPT, "figures", "ratios", f"before={before}", f"after={after}", "--out", out)
    assert ended.code == 0, ended.stderr
    evaluations = {name: runs.read(folder) for name, folder in (("b", before), ("a", after))}
    figure = figures.ratios([evaluations["b"], evaluations["a"]])
    (axis,) = figure.axes
    for step, line, evaluated in zip(
        axis.patches, axis.lines, (evaluations["b"], evaluations["a"]), strict=True
    ):
        share, edges, _ = step.get_data()
        ratio = evaluated.samples.perturbation_norm / evaluated.samples.image_norm
        assert share == pytest.approx(
            100 * np.histogram(ratio.clip(edges[0], edges[-1]), edges)[0] / 40
        )
        assert share.sum() == pytest.approx(100)
        assert line.get_xdata() == pytest.approx([np.median(ratio)] * 2)
    lowest = min(evaluated.samples.ratio.min() for evaluated in evaluations.values())
    assert edges[0] > lowest  # which is in the first bin
    medians = {
        name: line for name, line in svg_lines(Path(f"{out}.svg")).items() if "median" in name
    }
    assert len(medians) == 2


def test_the_sheet_shows_the_kept_images(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "dd", 1.0)
    ended = call(SCRIPT, "figures", "sheet", folder, "--out", tmp_path / "sheet")
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 5000
    figure = figures.sheet(runs.read(folder))
    picture = np.linspace(-1, 1, 64).reshape(8, 8)
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert len(shown) == 6
    assert np.allclose(shown[0], picture * 0.25 + 0.5, atol=1e-6)
    assert np.allclose(shown[2], (picture + 0.1 * picture[::-1]) * 0.25 + 0.5, atol=1e-6)


def rows_of(*options: object) -> list[dict[str, str]]:
    ended = call(SCRIPT, "table", *options, "--format", "csv")
    assert ended.code == 0, ended.stderr
    return list(csv.DictReader(io.StringIO(ended.stdout)))


def test_table(tmp_path: Path) -> None:
    before = f"Net & Co:Reference={evaluation(tmp_path / 'ref', 1.0)}"
    after = f"Net & Co:Deep Defense={evaluation(tmp_path / 'dd', 2.0)}"
    tuned = finetuning(tmp_path / "ft", 15, 25, 0.97, 0.2)
    rows = rows_of(before, after, tuned)
    assert [(row["network"], row["method"]) for row in rows] == [
        *(("Net & Co", "Reference"), ("Net & Co", "Deep Defense")),
        *(("mlp", "Reference"), ("mlp", "ft")),
    ]
    summary = json.loads((tmp_path / "dd" / "summary.json").read_text())
    reference = summary["fgs"]["eps_ref"]
    assert float(rows[0]["eps_ref"]) == float(rows[1]["eps_ref"]) == reference
    for row, scale in zip(rows[:2], (1.0, 2.0), strict=True):
        needed = scale * 0.1 * (np.arange(40) % 10)
        for fraction in (0.2, 0.5, 1.0):
            share = (needed > fraction * reference).mean()
            assert float(row[f"accuracy_at_{fraction:g}_eps_ref"]) == pytest.approx(share)
    assert float(rows[1]["rho2"]) == pytest.approx(2 * float(rows[0]["rho2"]))
    assert (rows[3]["rho2"], rows[3]["accuracy_at_1_eps_ref"]) == ("0.2", "")
    at_given_eps_ref = rows_of(before, "--eps-ref", 0.1)
    assert (
        float(at_given_eps_ref[0]["accuracy_at_1_eps_ref"]) == 0.5
    )  # measured, not read from the curve
    ended = call(SCRIPT, "table", before, after, "--out", tmp_path / "t.md")
    assert ended.code == 0, ended.stderr
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0] == "| Network | Method | Accuracy | rho2 | @0.2 | @0.5 | @1 |"
    assert lines[2].startswith("| Net & Co | Reference | 50.00 | 5.53e-2 |")
    assert lines[3].startswith("|  | Deep Defense | 50.00 | 1.11e-1 |")
    latex = call(SCRIPT, "table", before, after, "--format", "latex").stdout
    assert r"Net \& Co & Reference & 50.00 & $5.53 \times 10^{-2}$ &" in latex
    assert latex.count(r"\midrule") == 1
    assert latex.count(r" \\") == 3


def test_rows_that_mean_something_else_are_told(tmp_path: Path) -> None:
    one, two = (evaluation(tmp_path / name, 1.0) for name in ("one", "two"))
    summary = json.loads((two / "summary.json").read_text())
    summary["definition"]["max_iterations"] = 50
    (two / "summary.json").write_text(json.dumps(summary))
    ended = call(SCRIPT, "table", one, two)
    assert ended.code == 0
    assert "warning" in ended.stderr
    assert "max_iterations: 5 -> 50" in ended.stderr


@pytest.mark.parametrize("command", ["table", "figures ratios"])
def test_rows_of_different_images_print_a_warning(tmp_path: Path, command: str) -> None:
    one, two, other = (evaluation(tmp_path / name, 1.0) for name in ("one", "two", "other"))
    summary = json.loads((two / "summary.json").read_text())
    for folder, changes in ((two, {"index": "another"}), (other, {"index": "x", "model": "lenet"})):
        (folder / "summary.json").write_text(json.dumps(summary | changes))
    out = ("--out", tmp_path / "x") if "figures" in command else ()
    ended = call(SCRIPT, *command.split(), one, two, other, *out)
    assert ended.code == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "different images" in line]
    assert "-> another" in line
    assert f"{one} and {two}" in line


def test_mistakes(run: Run, tmp_path: Path) -> None:
    tuned = finetuning(tmp_path / "ft", 15, 25, 0.97, 0.2)
    folder = evaluation(tmp_path / "e", 1.0)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "summary.json").write_text('{"accu')
    out = ("--out", tmp_path / "x")
    cases = [
        (("merge", tmp_path / "nothing"), "contains no results"),
        (("table", tmp_path / "cut"), "cannot be read"),
        (("figures", "epochs", folder, *out), "is an evaluation"),
        (("figures", "ratios", tuned, *out), "is a fine-tuning"),
        (("figures", "sheet", folder, folder, *out), "shows one run"),
    ]
    for options, message in cases:
        ended = call(SCRIPT, *options)
        assert ended.code == 2
        (line,) = ended.stderr.splitlines()
        assert message in line
    line = expect_error(run, "table", tmp_path / "nothing", script=SCRIPT)
    assert "no file" in line
    (folder / "samples.parquet").write_bytes((folder / "samples.parquet").read_bytes()[:-100])
    ended = call(SCRIPT, "figures", "ratios", folder, *out)
    assert ended.code == 2
    assert "samples.parquet cannot be read" in ended.stderr


def test_labels_may_be_paths(tmp_path: Path) -> None:
    folder = finetuning(tmp_path / "lam=5", 5, 25, 0.97, 0.2)
    assert runs.run_of_argument(str(folder)).label == "lam=5"
    assert runs.run_of_argument(f"mine={tmp_path}/lam=5").label == "mine"
    assert table.rows_of([runs.read(folder)])[0].network == "mlp"
