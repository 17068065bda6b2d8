"""pipeline/evaluate.py as a user runs it."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.evaluation.samples import Samples
from pipeline.evaluation.shard_results import Appender
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.in_process import in_process, succeed
from tests.helpers.runs import (
    ROOT,
    Run,
    children,
    command,
    environment,
    expect_error,
    kill_all,
)
from tests.helpers.tiny import finetune

SCRIPT = "pipeline/evaluate.py"
COLUMNS = {"id", *(field.name for field in fields(Samples))}
FGS = ("--evaluation.fgs.eps", "[0.02,0.1]", "--evaluation.fgs.search", "true")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pipeline/finetune.py whose net is right for more than half of the images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = ("--model.name", "mlp", "--train.pretrain_lr", 0.1, "--train.epochs", 1)
    ended = finetune(folder, *argv, "--objective.method", "clean")
    assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def weights(trained: Path) -> Path:
    return trained / "weights.pth"


@pytest.fixture(scope="module")
def options(weights: Path) -> tuple:
    return ("--model.weights", weights, "--evaluation.num_images", 300, *FGS)


@pytest.fixture(scope="module")
def whole(options: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation on one rank, without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(SCRIPT, *options, "--output", folder)
    return folder


def results(folder: Path) -> tuple[dict, dict[str, dict]]:
    summary = json.loads((folder / "summary.json").read_text())
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(rows) == len({row["id"] for row in rows})
    return summary, {row["id"]: row for row in rows}


def assert_same_results(one: Path, other: Path) -> None:
    """Check that two evaluations have the same results: norms within 1e-5, the others exactly."""
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


def kill_after_lines(folder: Path, lines: int, *options: object) -> int:
    """Start an evaluation, and kill all its processes after this number of lines; returns the
    lines that it wrote."""
    process = subprocess.Popen(
        command(SCRIPT, *options, "--output", folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )

    def written() -> int:
        return sum(p.read_bytes().count(b"\n") for p in folder.glob("results/*/rank*.jsonl"))

    while written() < lines:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    kill_all(process)
    return written()


def test_what_an_evaluation_writes(whole: Path) -> None:
    summary, rows = results(whole)
    assert summary["num_samples"] == len(rows) == 300
    assert set(next(iter(rows.values()))) == COLUMNS
    assert summary["num_correct"] == sum(r["label"] == r["prediction"] for r in rows.values())
    ratios = [r["perturbation_norm"] / r["image_norm"] for r in rows.values()]
    assert summary["rho2"] == pytest.approx(sum(ratios) / 300)
    definition = summary["definition"]
    assert (definition["max_iterations"], definition["classes"]) == (5, "every")
    assert definition["visit"] == "all"


def test_shards_and_ranks_give_the_same(
    run: Run, options: tuple, whole: Path, tmp_path: Path
) -> None:
    for number in (2, 0, 1):  # in another order, one shard on two ranks
        shard = (*options, "--shard", f"{number}/3", "--output", tmp_path)
        done = run(SCRIPT, *shard, ranks=2) if number == 0 else in_process(SCRIPT, *shard)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "summary.json").exists() == (number == 1)
    assert_same_results(whole, tmp_path)
    (tmp_path / "summary.json").unlink()
    succeed("tools/report.py", "merge", tmp_path)
    assert_same_results(whole, tmp_path)


@pytest.mark.slow
def test_three_ranks_give_the_same(run: Run, options: tuple, whole: Path, tmp_path: Path) -> None:
    done = run(SCRIPT, *options, "--output", tmp_path, ranks=3)
    assert done.returncode == 0, done.stderr
    assert_same_results(whole, tmp_path)


def test_nothing_written_is_lost_by_a_kill(options: tuple, whole: Path, tmp_path: Path) -> None:
    small = (*options, "--evaluation.batch_size", 20)
    num_kept = kill_after_lines(tmp_path, 60, *small)
    assert num_kept < 300
    with (tmp_path / "results/0-of-1/rank0.jsonl").open("a") as file:
        file.write('{"id": "torn')  # a line that a kill has cut short
    output = succeed(SCRIPT, *small, "--output", tmp_path)
    assert f"{300 - num_kept} of 300 images to evaluate" in output
    assert_same_results(whole, tmp_path)


@pytest.mark.slow
def test_killed_twice_and_done_in_part_by_a_shard(
    options: tuple, whole: Path, tmp_path: Path
) -> None:
    small = (*options, "--evaluation.batch_size", 20)
    first = kill_after_lines(tmp_path, 60, *small)
    second = kill_after_lines(tmp_path, first + 60, *small)
    assert second >= first + 60
    assert "are missing" in succeed(SCRIPT, *small, "--output", tmp_path, "--shard", "0/2")
    output = succeed(SCRIPT, *small, "--output", tmp_path)
    assert int(re.search(r"(\d+) of 300 images to evaluate", output)[1]) <= 150
    assert_same_results(whole, tmp_path)


def test_a_signal_saves_and_stops(
    options: tuple, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, small = Appender.append, (*options, "--evaluation.batch_size", 20)

    def append_and_signal(self: Appender, samples: Samples, ids: list[str]) -> None:
        append(self, samples, ids)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "append", append_and_signal)
        done = in_process(SCRIPT, *small, "--output", tmp_path)
    assert done.returncode == 75, done.stderr
    assert "interrupted; everything is saved: rerun the same command" in done.stdout
    num_left = int(
        re.match(r".*?(\d+) of 300", succeed(SCRIPT, *small, "--output", tmp_path), re.DOTALL)[1]
    )
    assert 0 < num_left < 300
    assert_same_results(whole, tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(run: Run, weights: Path, tmp_path: Path) -> None:
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
    assert "2000 of 2000" not in succeed(SCRIPT, *options)
    assert results(tmp_path)[0]["num_samples"] == 2000


def test_two_at_once_do_not_mix(options: tuple, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "copy")
    with (folder / "results" / "0-of-1" / "rank0.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        line = expect_error(in_process, *options, "--output", folder, script=SCRIPT)
    assert "another process is writing" in line


def test_fgs_at_the_eps_ref_of_another_evaluation(
    weights: Path, whole: Path, tmp_path: Path
) -> None:
    searched, rows = results(whole)
    eps_ref = searched["fgs"]["eps_ref"]
    assert eps_ref > 0
    argv = ("--model.weights", weights, "--evaluation.num_images", 300)
    succeed(SCRIPT, *argv, "--evaluation.fgs.reference", whole, "--output", tmp_path)
    fgs = results(tmp_path)[0]["fgs"]
    assert fgs["reference"] == eps_ref
    assert len(fgs["at_reference"]) == 3
    for fraction, accuracy in fgs["at_reference"].items():
        read = sum(row["fgs_eps"] > float(fraction) * eps_ref for row in rows.values()) / 300
        assert accuracy == pytest.approx(read, abs=0.005)


def test_reads_the_yaml_and_the_weights_of_a_run(trained: Path, tmp_path: Path) -> None:
    config = ("--config", trained / "config.yaml")
    after = json.loads((trained / "summary.json").read_text())["after"]
    for name in ("weights.pth", "checkpoints/step-000000012.pt"):
        folder = tmp_path / name.replace("/", "-")
        succeed(SCRIPT, *config, "--model.weights", trained / name, "--output", folder)
        summary, _ = results(folder)
        assert summary["rho2"] == pytest.approx(after["rho2"], rel=1e-6)
        assert summary["accuracy"] == after["accuracy"]
    line = expect_error(in_process, *config, "--output", trained, script=SCRIPT)
    assert "holds another kind of run" in line


def test_shards_of_other_evaluations_are_refused(trained: Path, tmp_path: Path) -> None:
    config = ("--config", trained / "config.yaml", "--output", tmp_path)
    other = ("--model.weights", trained / "reference.pth")
    succeed(SCRIPT, *config, *other, "--shard", "0/2")
    wrong = (*config, "--model.weights", trained / "weights.pth", "--shard", "1/2")
    line = expect_error(in_process, *wrong, script=SCRIPT)
    assert "results of another evaluation (this one -> that one: weights:" in line
    wrong = (*config, *other, "--evaluation.attack.max_iterations", 9, "--shard", "1/2")
    line = expect_error(in_process, *wrong, script=SCRIPT)
    assert "definition.max_iterations: 9 -> 5" in line
    line = expect_error(in_process, "merge", tmp_path, script="tools/report.py")
    assert "50 of 100 images are missing: 50 of shard 1/2" in line
    output = succeed("tools/report.py", "merge", tmp_path, "--partial")
    assert "50 images are missing" in output


@pytest.mark.parametrize(
    ("num_images", "ranks"), [(8, 0), pytest.param(150, 2, marks=pytest.mark.slow)]
)
def test_squeezenet_on_ilsvrc_out_of_the_box(
    run: Run,
    ilsvrc_val: Path,
    squeezenet_weights: Path,
    tmp_path: Path,
    num_images: int,
    ranks: int,
) -> None:
    options = (
        *("--data.val", ilsvrc_val, "--model.name", "squeezenet1_1"),
        *("--model.weights", squeezenet_weights, "--evaluation.batch_size", 25),
        *("--evaluation.num_images", num_images, "--output", tmp_path),
    )
    done = run(SCRIPT, *options, *FGS, ranks=2) if ranks else in_process(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    summary, rows = results(tmp_path)
    assert len(rows) == summary["num_samples"] == num_images
    assert summary["top5_accuracy"] >= 0.75
    if ranks:
        assert summary["accuracy"] >= 0.55
        assert 8e-4 < summary["rho2"] < 1.1e-3
        assert summary["num_unflipped"] <= 2
        assert 2e-4 < summary["fgs"]["eps_ref"] < 1e-3
    else:
        assert summary["accuracy"] >= 0.4
        assert 5e-4 < summary["rho2"] < 2e-3


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    argv = ("--output", tmp_path / "x", "--dry_run", "true", "--shard", "1/3", *FGS)
    output = succeed(SCRIPT, *argv)
    assert "shard 1/3: 667 images" in output
    assert "FGS at 2 eps, eps_ref" in output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "-1/3"), "shard"),
        (("--shard", "1"), "shard must be i/n"),
        (("--evaluation.clip", "true"), "evaluation.clip must be false"),
        (("--evaluation.attack.norm", "1"), "norm must be above 1"),
        (("--evaluation.fgs.eps", "[-1]"), "evaluation.fgs.eps"),
        (("--evaluation.fgs.reference", "nowhere"), "nowhere/summary.json holds no eps_ref"),
        (("--evaluation.num_images", 0), "evaluation.num_images"),
    ],
)
def test_mistakes(tmp_path: Path, options: tuple, message: str) -> None:
    line = expect_error(in_process, "--output", tmp_path / "x", *options, script=SCRIPT)
    assert message in line


def test_mistakes_in_a_process(run: Run, tmp_path: Path) -> None:
    line = expect_error(run, "--output", tmp_path / "x", "--shard", "3/3", script=SCRIPT)
    assert "shard must be i/n with i from 0 to n - 1, got 3/3" in line


def test_few_classes(tmp_path: Path) -> None:
    for number, message in ((1, "has one class"), (3, "q 3")):
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
            assert message in expect_error(in_process, *options, script=SCRIPT)
        else:
            assert message in succeed(SCRIPT, *options)
            assert results(tmp_path / "3")[0]["definition"]["num_candidates"] == 3


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_ones_own.py").write_text(
        "import torch\n\n\ndef net():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(module.state_dict(), tmp_path / "w.pth")
    options = ("--model.name", "net_of_ones_own:net", "--model.weights", tmp_path / "w.pth")
    space = ("--evaluation.space", "pixels", "--evaluation.clip", "true", "--data.std", "[0.25]")
    succeed(SCRIPT, *options, *space, "--evaluation.num_images", 50, "--output", "out")
    summary, rows = results(tmp_path / "out")
    assert summary["num_samples"] == 50
    assert summary["input"]["std"] == [0.25]
    assert "pixels in [0, 1]" in summary["definition"]["space"]
    assert max(row["image_norm"] for row in rows.values()) < 28  # of pixels


def test_an_archive_that_changed(tmp_path: Path) -> None:
    members = {f"{k}/{k}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(10)}
    photos = index_tar(tmp_path / "photos.tar", members)
    with (tmp_path / "photos.tar").open("ab") as file:
        file.write(bytes(512))
    config = ("--config", ROOT / "configs" / "demo.yaml", "--data.val", photos.path)
    line = expect_error(in_process, *config, "--output", tmp_path / "x", script=SCRIPT)
    assert "photos.tar is longer than its index" in line
    assert "tools/index.py" in line
