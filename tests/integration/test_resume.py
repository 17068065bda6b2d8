"""Processes of pipeline/finetune.py that are killed, and go on.

test_interrupted.py makes cuts at one exact place, in this process.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.runtime import lock
from pipeline.training.checkpoint import write
from tests.helpers.in_process import in_process, succeed
from tests.helpers.runs import (
    SCRIPT,
    SMALL,
    Run,
    assert_same_weights,
    children,
    expect_error,
    kill_all,
    metrics,
    start,
    wait_for,
    weights,
)
from tests.helpers.tiny import TINY, finetune, finished, kill_at_step, metric_rows

# Dropout draws by rank, so the net here has none: the images and their order decide alone.
# Sums are taken in another order, and a large step would blow the last bit up in no time, as
# would choices that hang on it: which candidates to visit, whether to take one more tiny step.
PLAIN = (
    *("--model.name", "mlp", "--optim.lr", 0.0005),
    *("--regularizer.attack.candidate_search", "exhaustive"),
    *("--regularizer.attack.linearize_at", "current"),
)


def kill_after_step(folder: Path, step: int, *options: object, ranks: int = 0) -> None:
    """Start a run and kill -9 all of it once it has recorded ``step``."""
    process = start(folder, *options, ranks=ranks)
    try:
        wait_for(process, folder, step)
    finally:
        kill_all(process)
    assert not (folder / "summary.json").exists()


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without dropout on one rank, of two passes a step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    succeed(SCRIPT, *SMALL, *PLAIN, "--train.gradient_accumulation_steps", 2, "--output", folder)
    return folder


def assert_nearly_the_same(folder: Path, other: Path) -> None:
    """Two runs ended with the same losses and weights, but for the order of sums."""
    losses, expected = metrics(folder, "train/loss"), metrics(other, "train/loss")
    assert losses
    assert losses == pytest.approx(expected, rel=1e-5)
    whole = weights(other)
    for key, value in weights(folder).items():
        assert torch.allclose(value, whole[key], atol=2e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 13, 26])
def test_killed_and_resumed_is_the_same_bit_for_bit(
    uninterrupted: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    kill_after_step(folder, step)
    succeed(SCRIPT, *SMALL, "--output", folder)
    assert_same_weights(folder, uninterrupted)
    assert metrics(folder, "train/loss") == metrics(uninterrupted, "train/loss")
    one, two = (json.loads((f / "summary.json").read_text()) for f in (folder, uninterrupted))
    assert one["history"] == two["history"]


@pytest.mark.slow
def test_torchrun_restarts_two_ranks(one_rank: Path, tmp_path: Path) -> None:
    """With --max-restarts: they resume, and end as one rank does."""
    folder = tmp_path / "run"
    options = (*PLAIN, "--resume", "never")
    process = start(folder, *options, ranks=2, said=subprocess.PIPE, PET_MAX_RESTARTS="1")
    wait_for(process, folder, 26)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "resuming from" in output
    assert_nearly_the_same(folder, one_rank)


def test_killed_on_one_rank_and_resumed_on_two(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*PLAIN, "--train.epochs", 1, "--checkpoint.every_steps", 5)
    options += ("--regularizer.attack.num_candidates", 2, "--regularizer.attack.max_iterations", 2)
    # So that a part of the misclassified images is measured: the same on two ranks.
    options += ("--regularizer.c", 20, "--regularizer.d", 0.2, "--log.every_steps", 1)
    finished(tmp_path / "whole", *options)
    assert max(metrics(tmp_path / "whole", "train/measured").values()) < 0.6
    with monkeypatch.context() as patch:
        kill_at_step(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "cut", *options)
    done = run(SCRIPT, *TINY, *options, "--output", tmp_path / "cut", ranks=2)
    assert done.returncode == 0, done.stderr
    assert "step-000000006.pt, step 6" in done.stdout
    assert_nearly_the_same(tmp_path / "cut", tmp_path / "whole")
    cut, whole = (metrics(tmp_path / name, "train/measured") for name in ("cut", "whole"))
    assert cut == whole


@pytest.mark.slow
def test_killed_on_two_ranks_and_resumed_on_one(one_rank: Path, tmp_path: Path) -> None:
    options = (*PLAIN, "--train.gradient_accumulation_steps", 1)
    kill_after_step(tmp_path / "two", 26, *options, ranks=2)
    assert "resuming from" in succeed(SCRIPT, *SMALL, *options, "--output", tmp_path / "two")
    assert_nearly_the_same(tmp_path / "two", one_rank)


@pytest.mark.slow
def test_killed_and_resumed_on_two_ranks_is_the_same_bit_for_bit(run: Run, tmp_path: Path) -> None:
    kill_after_step(tmp_path / "cut", 26, ranks=2)
    for name in ("cut", "whole"):
        done = run(SCRIPT, *SMALL, "--output", tmp_path / name, ranks=2)
        assert done.returncode == 0, done.stderr
        assert ("resuming from" in done.stdout) == (name == "cut")
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    losses = [metrics(tmp_path / name, "train/loss") for name in ("cut", "whole")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_in_an_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    long = ("--evaluation.num_images", 2000, "--evaluation.batch_size", 4)
    options = (*long, "--checkpoint.every_steps", 1000)
    process = start(folder, *options, ranks=2, said=subprocess.PIPE)
    wait_for(process, folder, 24)
    os.kill(children(process.pid)[-1], signal.SIGUSR2)  # the other rank must learn of it
    output, errors = process.communicate(timeout=60)
    assert "interrupted after step 24; everything is saved" in output, errors
    assert process.returncode == 1, errors  # torchrun's own
    assert '"evaluation/rho2"' not in (folder / "metrics.jsonl").read_text()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000000024.pt"]


def test_a_finished_run_is_shown_again(uninterrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    before = (folder / "weights.pth").read_bytes()
    output = succeed(SCRIPT, *SMALL, "--output", folder)
    assert "step 48" in output
    assert "rho2" in output
    assert (folder / "weights.pth").read_bytes() == before
    assert len(metrics(folder, "train/loss")) == 48


def test_other_options_are_refused_on_resuming(uninterrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    line = expect_error(in_process, *SMALL, "--output", folder, "--optim.lr", 0.5)
    assert "optim.lr: 0.01 -> 0.5" in line
    line = expect_error(in_process, *SMALL, "--output", folder, "--resume", "never")
    assert "holds checkpoints" in line


def test_a_run_that_moves_to_another_decoder_is_warned(tiny_copy: Path) -> None:
    newest = tiny_copy / "checkpoints" / "step-000000018.pt"
    state = torch.load(newest, weights_only=True)
    assert state["decoder"] == "cpu"
    assert "decoded its images" not in finished(tiny_copy).stderr
    write(newest, {**state, "decoder": "gpu"})
    assert "decoded its images on the GPU, this one does on the CPU" in finished(tiny_copy).stderr


def test_a_run_that_goes_back_to_an_earlier_checkpoint(
    tiny_run: Path, tiny_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later checkpoints neither outlive the new ones, nor are they what a restart takes."""
    checkpoints = tiny_copy / "checkpoints"
    shutil.move(checkpoints / "step-000000018.pt", checkpoints / "step-000000020.pt")
    back = ("--resume", checkpoints / "step-000000012.pt", "--checkpoint.keep_last", 1)
    assert "20.pt is now" not in finished(tiny_copy, *back, "--dry_run", "true").stderr
    with monkeypatch.context() as patch:
        kill_at_step(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            finished(tiny_copy, *back, "--checkpoint.every_steps", 1)
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"best.pt", "step-000000015.pt", "step-000000020.pt.abandoned"}
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    restarted = finished(tiny_copy, *back)
    assert "resuming from" in restarted.stdout
    assert "step 15" in restarted.stdout
    assert_same_weights(tiny_copy, tiny_run)


def test_a_run_that_continues_from_a_checkpoint_of_another(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    finished(folder, "--resume", tiny_run / "checkpoints" / "step-000000012.pt")
    assert (folder / "reference.pth").read_bytes() == (tiny_run / "reference.pth").read_bytes()
    assert_same_weights(folder, tiny_run)
    names = {path.name for path in (tiny_run / "checkpoints").iterdir()}
    assert names == {"best.pt", "step-000000012.pt", "step-000000018.pt"}


def test_a_checkpoint_cut_short(tiny_run: Path, tiny_copy: Path) -> None:
    """It is set aside, and the run resumes from the one before it."""
    cut = tiny_copy / "checkpoints" / "step-000000018.pt"
    cut.write_bytes(cut.read_bytes()[:-2000])
    ended = finished(tiny_copy)
    assert f"warning: the checkpoint {cut} cannot be read" in ended.stderr
    assert "step-000000012.pt, step 12" in ended.stdout
    assert_same_weights(tiny_copy, tiny_run)
    assert metric_rows(tiny_copy) == metric_rows(tiny_run)
    names = {path.name for path in cut.parent.iterdir()}
    assert names == {"best.pt", "step-000000012.pt", cut.name, f"{cut.name}.damaged"}


def test_one_run_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock ends with its process, even one that is killed."""
    options = ("--train.epochs", 200)
    process = start(tmp_path, *options)
    wait_for(process, tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_TIMEOUT", 0)
        line = expect_error(in_process, *SMALL, *options, "--output", tmp_path)
    assert f"is being written by process {process.pid} on " in line
    kill_all(process)
    lock.lock_folder(tmp_path)
    lock._held.pop().close()
