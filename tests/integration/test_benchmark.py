"""tools/benchmark.py runs, its variants do what their names say, and its JSON is complete."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import Run

pytest.importorskip("nvidia.dali")


def rows_of(run: Run, tmp_path: Path, *options: object) -> dict[str, dict]:
    path = tmp_path / "result.json"
    done = run("tools/benchmark.py", *options, "--json", path, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["device"] == "cpu"
    assert result["versions"]["torch"]
    return {row["name"]: row for row in result["rows"]}


def test_regularizer(run: Run, tmp_path: Path, squeezenet_weights: Path, ilsvrc_val: Path) -> None:
    options = ("--weights", squeezenet_weights, "--data", ilsvrc_val, "--num-images", 3)
    rows = rows_of(run, tmp_path, "regularizer", *options)
    names = ["plain", "authors", "exact", "fixed", "fixed, pruned", "unrolled", "boundary"]
    assert list(rows) == names
    assert rows["plain"]["flops_ratio"] == 1
    assert rows["exact"]["cosine"] > 0.9999
    assert rows["exact"]["norm_ratio"] == pytest.approx(1, abs=1e-3)
    assert rows["unrolled"]["cosine"] > 0.98
    assert rows["boundary"]["cosine"] > 0.9
    cost = [rows[name]["flops_ratio"] for name in names[1:]]
    assert cost == sorted(cost, reverse=True)
    assert rows["authors"]["peak_memory_ratio"] > 4
    assert max(rows[name]["peak_memory_ratio"] for name in ("unrolled", "boundary")) < 2.6


def test_deepfool(run: Run, tmp_path: Path, squeezenet_weights: Path, ilsvrc_val: Path) -> None:
    options = ("--weights", squeezenet_weights, "--data", ilsvrc_val, "--num-images", 3)
    rows = rows_of(run, tmp_path, "deepfool", *options)
    first = rows["fixed"]
    for name, row in rows.items():  # foolbox's and adversarial-library's too, where installed
        assert row["flipped"] == 1, name
        assert row["rho2"] == pytest.approx(first["rho2"], rel=0.05), name
        assert row["images_per_second"] > 0, name


def test_evaluation(run: Run, tmp_path: Path, squeezenet_weights: Path, ilsvrc_val: Path) -> None:
    options = ("--weights", squeezenet_weights, "--data", ilsvrc_val, "--num-images", 4)
    rows = rows_of(run, tmp_path, "evaluation", *options)
    assert list(rows) == ["foolbox", "this project", "pruned", "and eps_ref"]
    first = rows["foolbox"]
    for name, row in rows.items():
        assert row["rho2"] == pytest.approx(first["rho2"], rel=0.05), name
        assert row["images_per_second"] > 0, name
        for number in ("accuracy", "fgs 0.0001", "fgs 0.001", "fgs 0.02"):
            assert row[number] == first[number], (name, number)


def test_loader(run: Run, tmp_path: Path) -> None:
    rows = rows_of(run, tmp_path, "loader", "--num-images", 64)
    assert list(rows) == ["torchvision", "dali reader", "this project"]
    assert all(row["images_per_second"] > 10 for row in rows.values())


def test_step(run: Run, tmp_path: Path, ilsvrc_val: Path) -> None:
    options = ("--data", ilsvrc_val, "--num-images", 2, "--max-images", "auto")
    rows = rows_of(run, tmp_path, "step", *options)
    assert list(rows) == ["plain", "unrolled", "boundary"]
    assert rows["unrolled"]["ratio"] > rows["plain"]["ratio"] == 1
    assert all(0 <= row["data_wait"] <= 1 for row in rows.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("loader", "--data", "nowhere.parquet"), "--data"),
        (("step", "--num-images", 0), "at least 1"),
        (("deepfool", "--model", "resnet19"), "resnet19"),
        (("deepfool", "--data", "nowhere.parquet"), "nowhere.parquet"),
        (("evaluation",), "--data"),
        (("regularizer", "--max-images", "auto"), "--max-images"),
    ],
)
def test_mistakes_are_one_line(run: Run, options: tuple, words: str) -> None:
    done = run("tools/benchmark.py", *options)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
