"""tools/benchmark.py runs, its variants do what their names say, and its JSON is complete."""

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import families
from benchmarks.common import regularizers
from benchmarks.counters import counted
from pipeline.data.index import Index
from tests.helpers.in_process import call
from tests.helpers.runs import Run, expect_error

TOOL = "tools/benchmark.py"
SMALL = ("--model", "tests.helpers.nets:smooth", "--num-images", 3)


@pytest.fixture(scope="module")
def squeezenet(squeezenet_weights: Path, ilsvrc_val: Path) -> tuple[object, ...]:
    """Options for a trained net and its photos."""
    return ("--weights", squeezenet_weights, "--data", ilsvrc_val)


def rows_of(tmp_path: Path, *options: object) -> dict[str, dict]:
    path = tmp_path / "result.json"
    ended = call(TOOL, *options, "--json", path, "--repeats", 1)
    assert ended.code == 0, ended.stderr
    result = json.loads(path.read_text())
    assert result["device"] == "cpu"
    assert result["versions"]["torch"]
    return {row["name"]: row for row in result["rows"]}


def check_regularizer(rows: dict[str, dict]) -> None:
    names = ["plain", "authors", "exact", "fixed", "fixed, pruned", "unrolled", "boundary"]
    assert list(rows) == [*names, "true distance", "one step"]
    assert rows["plain"]["flops_ratio"] == 1
    assert rows["exact"]["cosine"] > 0.9999
    assert rows["exact"]["norm_ratio"] == pytest.approx(1, abs=1e-3)
    cost = [rows[name]["flops_ratio"] for name in names[1:]]
    assert cost == sorted(cost, reverse=True)
    flops = {name: row["flops_ratio"] for name, row in rows.items()}
    assert -1 < flops["true distance"] - flops["boundary"] < 2
    assert 1.9 < flops["one step"] < min(2.5, flops["boundary"])


def test_regularizer(tmp_path: Path) -> None:
    check_regularizer(rows_of(tmp_path, "regularizer", *SMALL))


@pytest.mark.slow
def test_regularizer_of_a_trained_net(tmp_path: Path, squeezenet: tuple[object, ...]) -> None:
    rows = rows_of(tmp_path, "regularizer", *squeezenet, "--num-images", 2)
    check_regularizer(rows)
    assert rows["unrolled"]["cosine"] > 0.98
    assert rows["boundary"]["cosine"] > 0.9
    assert rows["authors"]["peak_memory_ratio"] > 4
    assert max(rows[name]["peak_memory_ratio"] for name in ("unrolled", "boundary")) < 2.6


@pytest.mark.slow
@pytest.mark.parametrize("crops", ["random", "centre"])
def test_regularizer_with_true_labels(
    tmp_path: Path, squeezenet: tuple[object, ...], crops: str
) -> None:
    options = ("--num-images", 8, "--crops", crops, "--labels", "true", "--repeats", 1)
    rows = rows_of(tmp_path, "regularizer", *squeezenet, *options)
    names = ("unrolled", "boundary", "true distance", "one step")
    assert list(rows) == ["plain", *(n + part for n in names for part in (", all samples", ""))]
    for name in names:
        assert rows[name]["flops_ratio"] <= rows[f"{name}, all samples"]["flops_ratio"]
        assert rows[name]["lowest_cosine"] > 0.9


def test_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "NETS", {"squeezenet1_1": 64, "tests.helpers.nets:smooth": 32})
    linear, smooth = rows_of(tmp_path, "families").values()
    assert (linear["unrolled_by"], linear["first_nonlinear"]) == ("linear pieces", "")
    assert (smooth["unrolled_by"], smooth["first_nonlinear"]) == ("second derivatives", "gelu")
    for row in (linear, smooth):
        assert 1.9 < row["one step"] < row["boundary"] < row["unrolled"]


def test_families_without_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(families.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(families, "measure", lambda name, *_: {"name": name})
    rows = families.benchmark(argparse.Namespace())
    assert [row["name"] for row in rows] == [n for n in families.NETS if not n.startswith("timm:")]
    assert "timm is not installed" in capsys.readouterr().out


def test_fused_attention_is_counted() -> None:
    q, k, v = (torch.randn(2, 3, 8, 16) for _ in range(3))
    flops = {}
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            _, flops[backend] = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    assert set(flops.values()) == {2 * (2 * 2 * 3 * 8 * 8 * 16)}  # two products of matrices


def check_rates(rows: dict[str, dict]) -> None:
    """All variants, foolbox's too, find the same robustness."""
    expected = pytest.approx(next(iter(rows.values()))["rho2"], rel=0.05)
    for name, row in rows.items():
        assert row["rho2"] == expected, name
        assert row["images_per_second"] > 0, name


@pytest.mark.parametrize("given", [False, True])
def test_robustness_needs_runs(tmp_path: Path, given: bool) -> None:
    options = ("--runs", tmp_path) if given else ()
    ended = call(TOOL, "robustness", *options)
    assert ended.code == 2
    assert ("has no seed*" if given else "robustness needs --runs") in ended.stderr


def test_deepfool(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "deepfool", *SMALL)
    assert len(rows) >= 5  # and other libraries', where installed
    check_rates(rows)
    assert all(row["flipped"] == 1 for row in rows.values())


def test_attacks(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "attacks", *SMALL, "--steps", 100)
    names = ["deepfool", "superdeepfool", "ddn, 100 steps", "fmn, 100 steps", "foolbox DeepFool"]
    assert list(rows)[: len(names)] == names  # and adversarial-library's, where it is installed
    assert "foolbox DDN, 100 steps" in rows
    assert all(row["flipped"] == 1 for row in rows.values())
    assert rows["superdeepfool"]["rho2"] < rows["deepfool"]["rho2"]
    assert rows["superdeepfool"]["queries"] < 70 < rows["ddn, 100 steps"]["queries"]
    assert max(row["optimality"] for row in rows.values()) <= 1
    assert rows["superdeepfool"]["optimality"] > rows["deepfool"]["optimality"]


@pytest.mark.slow
def test_evaluation(tmp_path: Path, photos: Index) -> None:
    net = ("--model", "tests.helpers.nets:first_two", "--num-images", 8)
    rows = rows_of(tmp_path, "evaluation", "--data", photos.path, *net)
    assert list(rows) == ["foolbox", "this project", "pruned", "and eps_ref"]
    check_rates(rows)
    for name, row in rows.items():
        for number in ("accuracy", "fgs 0.0001", "fgs 0.001", "fgs 0.02"):
            assert row[number] == rows["foolbox"][number], (name, number)
    assert 1 > rows["foolbox"]["accuracy"] > rows["foolbox"]["fgs 0.02"]


@pytest.mark.slow
def test_loader(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "loader", "--num-images", 16)
    assert list(rows) == ["torchvision", "dali reader", "this project"]
    assert all(row["images_per_second"] > 0 for row in rows.values())


@pytest.mark.slow
def test_step(tmp_path: Path, ilsvrc_val: Path) -> None:
    rows = rows_of(tmp_path, "step", "--data", ilsvrc_val, *SMALL, "--max-images", "auto")
    assert list(rows) == ["plain", *regularizers(None)]
    assert rows["unrolled"]["tflops_per_second"] > 0
    assert all(0 <= row["data_wait"] <= 1 for row in rows.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("loader", "--data", "nowhere.parquet"), "--data"),
        (("step", "--num-images", 0), "at least 1"),
        (("deepfool", "--model", "resnet19"), "resnet19"),
        (("deepfool", "--data", "nowhere.parquet"), "nowhere.parquet"),
        (("regularizer", "--max-images", "auto", *SMALL[:2]), "--max-images"),
    ],
)
def test_mistakes_are_one_line(options: tuple, said: str) -> None:
    ended = call(TOOL, *options)
    assert ended.code == 2
    assert said in ended.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_mistake_of_a_process(run: Run) -> None:
    assert "--data" in expect_error(run, "evaluation", script=TOOL)
