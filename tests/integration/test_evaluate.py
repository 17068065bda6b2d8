"""pipeline/evaluate.py as a user runs it."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.evaluation.samples import Samples
from pipeline.models.paper_nets import mlp
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.runs import ROOT, Run, children, command, environment, expect_error

SCRIPT = "pipeline/evaluate.py"
COLUMNS = {"id", *(field.name for field in fields(Samples))}
FGS = ("--evaluation.fgs.eps", "[0.02,0.1]", "--evaluation.fgs.search", "true")


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


def same(one: Path, other: Path) -> None:
    """Two evaluations found the same: norms within 1e-5, everything else exactly."""
    (summary, rows), (summary2, rows2) = results(one), results(other)
    assert rows.keys() == rows2.keys()
    for name, row in rows.items():
        for column, value in row.items():
            if isinstance(value, float):
                close = pytest.approx(value, rel=1e-5, nan_ok=True)
                assert rows2[name][column] == close, (name, column)
            else:
                assert rows2[name][column] == value, (name, column)
    for key in summary.keys() - {"runs", "rho2", "ratio_median", "ratio_quantiles"}:
        assert summary2[key] == summary[key], key
    for key in ("rho2", "ratio_median", "ratio_quantiles"):
        assert summary2[key] == pytest.approx(summary[key], rel=1e-5), key


def kill_in_the_middle(folder: Path, lines: int, *options: object, ranks: int = 0) -> int:
    """Start an evaluation, kill -9 all of it after so many lines; the lines it wrote."""
    process = subprocess.Popen(
        command(SCRIPT, *options, "--output", folder, ranks=ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )

    def written() -> int:
        return sum(p.read_bytes().count(b"\n") for p in folder.glob("results/*/rank*.jsonl"))

    while written() < lines:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return written()


def test_ranks_shards_and_kills_give_the_same(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--evaluation.num_images", 700, *FGS)
    one = tmp_path / "1"
    done = run(SCRIPT, *options, "--output", one, ranks=1)
    assert done.returncode == 0, done.stderr
    summary, rows = results(one)
    assert summary["num_samples"] == len(rows) == 700
    assert set(next(iter(rows.values()))) == COLUMNS
    assert summary["num_correct"] == sum(r["label"] == r["prediction"] for r in rows.values())
    ratios = [r["perturbation_norm"] / r["image_norm"] for r in rows.values()]
    assert summary["rho2"] == pytest.approx(sum(ratios) / 700)
    definition = summary["definition"]
    assert (definition["max_iterations"], definition["classes"]) == (5, "every")
    assert definition["visit"] == "all"

    done = run(SCRIPT, *options, "--output", tmp_path / "3", ranks=3)
    assert done.returncode == 0, done.stderr
    same(one, tmp_path / "3")

    seven = tmp_path / "7"
    for number in (3, 0, 6, 2, 5, 1, 4):  # in any order, one on two ranks
        shard = ("--shard", f"{number}/7", "--output", seven)
        done = run(SCRIPT, *options, *shard, ranks=2 * (number == 6))
        assert done.returncode == 0, done.stderr
        assert (seven / "summary.json").exists() == (number == 4)
    assert "600 of 700 images are missing" not in done.stdout
    same(one, seven)
    (seven / "summary.json").unlink()
    done = run("tools/report.py", "merge", seven)
    assert done.returncode == 0, done.stderr
    same(one, seven)

    killed = tmp_path / "killed"
    small = (*options, "--evaluation.batch_size", 20)
    first = kill_in_the_middle(killed, 60, *small)
    second = kill_in_the_middle(killed, first + 60, *small)
    with (killed / "results/0-of-1/rank0.jsonl").open("a") as file:
        file.write('{"id": "torn')  # as a kill in mid-write leaves it
    done = run(SCRIPT, *small, "--output", killed, "--shard", "0/2")
    assert done.returncode == 0, done.stderr
    assert "are missing" in done.stdout
    done = run(SCRIPT, *small, "--output", killed)
    assert done.returncode == 0, done.stderr
    left = int(re.search(r"(\d+) of 700 images to evaluate", done.stdout)[1])
    assert left <= 350  # what the shard did was not repeated
    assert second >= first + 60
    same(one, killed)


def test_nothing_written_is_lost_by_a_kill(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--evaluation.batch_size", 20)
    kept = kill_in_the_middle(tmp_path, 100, *options)
    done = run(SCRIPT, *options, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{2000 - kept} of 2000 images to evaluate" in done.stdout
    assert results(tmp_path)[0]["num_samples"] == 2000


def test_a_signal_stops_all_ranks(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--evaluation.batch_size", 5, "--output", tmp_path)
    process = subprocess.Popen(
        command(SCRIPT, *options, ranks=2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    rows = tmp_path / "results" / "0-of-1" / "rank1.jsonl"
    while not (rows.exists() and rows.stat().st_size > 5000):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(children(process.pid)[0], signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert "interrupted; everything is saved: rerun the same command" in output, errors
    done = run(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert "2000 of 2000" not in done.stdout
    assert results(tmp_path)[0]["num_samples"] == 2000


def test_two_at_once_do_not_mix(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--output", tmp_path, "--evaluation.batch_size", 5)
    options += ("--model.name", "tests.helpers.nets:slow_mlp")  # or the first would end too soon
    process = subprocess.Popen(
        command(SCRIPT, *options), env=environment(), stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("results/*/rank0.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    line = expect_error(run, *options, script=SCRIPT)
    assert "another process is writing" in line
    process.kill()
    process.wait()


def test_fgs_at_a_given_eps_ref(run: Run, weights: Path, tmp_path: Path) -> None:
    options = ("--model.weights", weights, "--evaluation.num_images", 300)
    done = run(SCRIPT, *options, *FGS, "--output", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    searched, rows = results(tmp_path / "a")
    reference = tmp_path / "a"
    if searched["fgs"]["eps_ref"] is None:  # a random net is right less than half of the time
        reference = "0.05"
        line = expect_error(
            *(run, *options, "--evaluation.fgs.reference", tmp_path / "a"),
            *("--output", tmp_path / "b"),
            script=SCRIPT,
        )
        assert "holds no eps_ref" in line
    done = run(
        SCRIPT, *options, "--evaluation.fgs.reference", reference, "--output", tmp_path / "b"
    )
    assert done.returncode == 0, done.stderr
    fgs = results(tmp_path / "b")[0]["fgs"]
    assert fgs["reference"] == 0.05
    for fraction, accuracy in fgs["at_reference"].items():
        read = sum(row["fgs_eps"] > float(fraction) * 0.05 for row in rows.values()) / 300
        assert accuracy == pytest.approx(read, abs=0.005)


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
    other = ("--model.weights", tmp_path / "run" / "reference.pth", "--output", tmp_path / "x")
    done = run(SCRIPT, *config, *other, "--shard", "0/2")
    assert done.returncode == 0, done.stderr
    wrong = ("--model.weights", tmp_path / "run" / "weights.pth", "--output", tmp_path / "x")
    line = expect_error(run, *config, *wrong, "--shard", "1/2", script=SCRIPT)
    assert "results of another evaluation (this one -> that one: weights:" in line
    options = ("--evaluation.attack.max_iterations", 9)
    line = expect_error(run, *config, *other, *options, "--shard", "1/2", script=SCRIPT)
    assert "definition.max_iterations: 9 -> 5" in line
    line = expect_error(run, "merge", tmp_path / "x", script="tools/report.py")
    assert "50 of 100 images are missing: 50 of shard 1/2" in line
    done = run("tools/report.py", "merge", tmp_path / "x", "--partial")
    assert "50 images are missing" in done.stdout


def test_squeezenet_on_ilsvrc_out_of_the_box(
    run: Run, ilsvrc_val: Path, squeezenet_weights: Path, tmp_path: Path
) -> None:
    options = (
        *("--data.val", ilsvrc_val, "--model.name", "squeezenet1_1"),
        *("--model.weights", squeezenet_weights, "--evaluation.batch_size", 25, *FGS),
    )
    done = run(SCRIPT, *options, "--output", tmp_path / "2", ranks=2)
    assert done.returncode == 0, done.stderr
    summary, rows = results(tmp_path / "2")
    assert len(rows) == summary["num_samples"] == 150
    assert summary["accuracy"] >= 0.55
    assert summary["top5_accuracy"] >= 0.75
    assert 8e-4 < summary["rho2"] < 1.1e-3
    assert summary["num_unflipped"] <= 2
    assert 2e-4 < summary["fgs"]["eps_ref"] < 1e-3


def test_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run(SCRIPT, "--output", tmp_path / "x", "--dry_run", "true", "--shard", "1/3", *FGS)
    assert done.returncode == 0, done.stderr
    assert "shard 1/3: 667 images" in done.stdout
    assert "FGS at 2 eps, eps_ref" in done.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "3/3"), "shard must be i/n with i from 0 to n - 1, got 3/3"),
        (("--shard", "-1/3"), "shard"),
        (("--shard", "1"), "shard must be i/n"),
        (("--evaluation.clip", "true"), "evaluation.clip must be false"),
        (("--evaluation.attack.norm", "1"), "norm must be above 1"),
        (("--evaluation.fgs.eps", "[-1]"), "evaluation.fgs.eps"),
        (("--evaluation.fgs.reference", "nowhere"), "nowhere/summary.json holds no eps_ref"),
        (("--evaluation.num_images", 0), "evaluation.num_images"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, options: tuple, words: str) -> None:
    assert words in expect_error(run, "--output", tmp_path / "x", *options, script=SCRIPT)


def test_few_classes(run: Run, tmp_path: Path) -> None:
    for number, words in ((1, "has one class"), (3, "q 3")):
        members = {
            f"{k % number}/{k}.png": encode(picture(28, 28, k).convert("L"), "PNG")
            for k in range(6)
        }
        photos = index_tar(tmp_path / f"{number}.tar", members)
        options = (
            *("--config", ROOT / "configs" / "demo.yaml", "--data.val", photos.path),
            *("--output", tmp_path / str(number)),
        )
        if number == 1:
            assert words in expect_error(run, *options, script=SCRIPT)
        else:
            done = run(SCRIPT, *options)
            assert words in done.stdout
            assert results(tmp_path / "3")[0]["definition"]["num_candidates"] == 3


def test_a_model_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef net():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(module.state_dict(), tmp_path / "w.pth")
    options = ("--model.name", "mine:net", "--model.weights", tmp_path / "w.pth")
    space = ("--evaluation.space", "pixels", "--evaluation.clip", "true", "--data.std", "[0.25]")
    done = subprocess.run(
        command(SCRIPT, *options, *space, "--evaluation.num_images", 50, "--output", "out"),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary, rows = results(tmp_path / "out")
    assert summary["num_samples"] == 50
    assert summary["input"]["std"] == [0.25]
    assert "pixels in [0, 1]" in summary["definition"]["space"]
    assert max(row["image_norm"] for row in rows.values()) < 28  # of pixels


def test_an_archive_that_changed(run: Run, tmp_path: Path) -> None:
    members = {f"{k}/{k}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(10)}
    photos = index_tar(tmp_path / "photos.tar", members)
    with (tmp_path / "photos.tar").open("ab") as file:
        file.write(bytes(512))
    config = ("--config", ROOT / "configs" / "demo.yaml", "--data.val", photos.path)
    line = expect_error(run, *config, "--output", tmp_path / "x", script=SCRIPT)
    assert "photos.tar is longer than its index" in line
    assert "tools/index.py" in line
