"""pipeline/evaluate.py as a user runs it."""

import json
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.models import mlp
from tests.conftest import Run, command, environment
from tests.test_finetune import expect_error

SCRIPT = "pipeline/evaluate.py"
COLUMNS = {
    *("id", "label", "prediction", "image_norm", "perturbation_norm", "steps", "flipped"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mlp.pth"
    torch.save(mlp().state_dict(), path)
    return path


def results(folder: Path) -> tuple[dict, dict[str, dict]]:
    summary = json.loads((folder / "summary.json").read_text())
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(rows) == len({row["id"] for row in rows})
    return summary, {row["id"]: row for row in rows}


def test_any_number_of_ranks_gives_the_same(run: Run, weights: Path, tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        options = ("--model.weights", weights, "--output", folder, "--evaluation.num_images", 700)
        done = run(SCRIPT, *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
        found[ranks] = results(folder)
    (one, rows), (three, others) = found[1], found[3]
    assert one["num_samples"] == len(rows) == 700
    assert set(next(iter(rows.values()))) == COLUMNS
    assert rows.keys() == others.keys()
    for name, row in rows.items():
        numbers = {key: value for key, value in row.items() if key != "id"}
        assert {key: others[name][key] for key in numbers} == pytest.approx(numbers, rel=1e-5)
    assert three["accuracy"] == one["accuracy"]
    assert three["num_unflipped"] == one["num_unflipped"]
    assert three["rho2"] == pytest.approx(one["rho2"], rel=1e-5)
    assert one["accuracy"] == sum(r["label"] == r["prediction"] for r in rows.values()) / 700
    ratios = [r["perturbation_norm"] / r["image_norm"] for r in rows.values()]
    assert one["rho2"] == pytest.approx(sum(ratios) / 700)
    definition = one["definition"]
    assert (definition["max_iterations"], definition["classes"]) == (5, "every")
    assert definition["visit"] == "all"


def test_killed_and_started_again(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--evaluation.batch_size", 20)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(SCRIPT, *options, "--output", folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    rows = folder / "results" / "rank0.jsonl"
    while not (rows.exists() and rows.stat().st_size > 10_000):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    with rows.open("a") as file:
        file.write('{"id": "torn')  # as a kill in mid-write leaves it
    done_before = rows.read_text().count("\n")
    done = run(SCRIPT, *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert f"{2000 - done_before} of 2000 images to evaluate" in done.stdout
    whole = tmp_path / "whole"
    assert run(SCRIPT, *options, "--output", whole).returncode == 0
    one, two = results(folder), results(whole)
    assert one[1] == two[1]
    assert one[0]["rho2"] == two[0]["rho2"]
    line = expect_error(
        run, *options, "--output", folder, "--evaluation.attack.max_iterations", 9, script=SCRIPT
    )
    assert "results of another evaluation" in line
    assert "max_iterations" in line


def test_reads_the_yaml_and_the_weights_of_a_run(run: Run, tmp_path: Path) -> None:
    small = ("--train.clean_epochs", 1, "--train.epochs", 1, "--evaluation.num_images", 100)
    done = run("pipeline/finetune.py", *small, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    config = ("--config", tmp_path / "run" / "config.yaml")
    for name in ("weights.pth", "checkpoints/step-000000120.pt"):
        folder = tmp_path / name.replace("/", "-")
        weights = ("--model.weights", tmp_path / "run" / name)
        done = run(SCRIPT, *config, *weights, "--output", folder)
        assert done.returncode == 0, done.stderr
        after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
        summary, _ = results(folder)
        assert summary["rho2"] == pytest.approx(after["rho2"], rel=1e-6)
        assert summary["accuracy"] == after["accuracy"]
    line = expect_error(run, *config, "--output", tmp_path / "run", script=SCRIPT)
    assert "holds another kind of run" in line


def test_squeezenet_on_ilsvrc(
    run: Run, ilsvrc_val: Path, squeezenet_weights: Path, tmp_path: Path
) -> None:
    config = tmp_path / "squeezenet.yaml"
    config.write_text("model: {name: squeezenet1_1}\n")
    options = (
        *("--config", config, "--data.val", ilsvrc_val, "--model.weights", squeezenet_weights),
        *("--output", tmp_path / "out", "--evaluation.batch_size", 25),
    )
    done = run(SCRIPT, *options, ranks=2)
    assert done.returncode == 0, done.stderr
    summary, rows = results(tmp_path / "out")
    assert len(rows) == summary["num_samples"] == 150
    assert summary["accuracy"] >= 0.55
    assert 8e-4 < summary["rho2"] < 1.1e-3
    assert summary["num_unflipped"] <= 2
