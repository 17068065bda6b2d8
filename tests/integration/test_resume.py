"""Runs of pipeline/finetune.py that are cut, and go on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import (
    SCRIPT,
    SMALL,
    Run,
    children,
    command,
    environment,
    expect_error,
    metrics,
    start,
    wait_for,
    weights,
)


def kill_at(folder: Path, step: int, *options: object, ranks: int = 0) -> None:
    """Start a run and kill -9 all of it once it has recorded ``step``."""
    process = start(folder, *options, ranks=ranks)
    try:
        wait_for(process, folder, step)
    finally:
        # torchrun gives its workers sessions of their own: they would live on as orphans.
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("step", [3, 13, 26, 41])
def test_killed_and_resumed_is_the_same_bit_for_bit(
    run: Run, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    kill_at(folder, step)
    done = run(SCRIPT, *SMALL, "--output", folder)
    assert done.returncode == 0, done.stderr
    whole = weights(undisturbed)
    assert all(torch.equal(value, whole[key]) for key, value in weights(folder).items())
    assert metrics(folder, "train/loss") == metrics(undisturbed, "train/loss")
    one, two = (json.loads((f / "summary.json").read_text()) for f in (folder, undisturbed))
    assert one["history"] == two["history"]


def test_killed_and_resumed_on_two_ranks_is_the_same_bit_for_bit(run: Run, tmp_path: Path) -> None:
    kill_at(tmp_path / "cut", 26, ranks=2)
    for name in ("cut", "whole"):
        done = run(SCRIPT, *SMALL, "--output", tmp_path / name, ranks=2)
        assert done.returncode == 0, done.stderr
    process = start(
        tmp_path / "again", "--resume", "never", ranks=2, PET_MAX_RESTARTS="1"
    )  # torchrun --max-restarts=1
    wait_for(process, tmp_path / "again", 26)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=120) == 0
    whole = weights(tmp_path / "whole")
    for name in ("cut", "again"):
        assert all(torch.equal(v, whole[key]) for key, v in weights(tmp_path / name).items())
    assert metrics(tmp_path / "again", "train/loss") == metrics(tmp_path / "whole", "train/loss")


def test_killed_on_two_ranks_and_resumed_on_one(run: Run, tmp_path: Path) -> None:
    # Dropout draws by rank, so the net here has none: the images and their order decide alone.
    # Sums are taken in another order, and a large step would blow the last bit up in no time, as
    # would choices that hang on it: which candidates to visit, whether to take one more tiny step.
    plain = ("--model.name", "mlp", "--optim.lr", 0.0005, "--train.gradient_accumulation_steps", 1)
    plain += (
        "--regularizer.attack.candidate_search",
        "exhaustive",
        "--regularizer.attack.linearize_at",
        "current",
    )
    kill_at(tmp_path / "two", 26, *plain, ranks=2)
    done = run(SCRIPT, *SMALL, *plain, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    more = ("--train.gradient_accumulation_steps", 2)
    done = run(SCRIPT, *SMALL, *plain, *more, "--output", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    a, b = metrics(tmp_path / "two", "train/loss"), metrics(tmp_path / "one", "train/loss")
    assert a.keys() == b.keys()
    assert all(a[step] == pytest.approx(b[step], rel=1e-5) for step in a)
    whole = weights(tmp_path / "one")
    for key, value in weights(tmp_path / "two").items():
        assert torch.allclose(value, whole[key], atol=2e-4), key


def test_a_signal_saves_and_stops(run: Run, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--checkpoint.every_steps", 1000, said=subprocess.PIPE)
    wait_for(process, folder, 7)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "rerun the same command to resume" in output
    assert "Traceback" not in errors
    (saved,) = (folder / "checkpoints").glob("step-*.pt")
    assert int(saved.stem.split("-")[1]) >= 7
    done = run(SCRIPT, *SMALL, "--output", folder)
    assert done.returncode == 0, done.stderr
    whole = weights(undisturbed)
    assert all(torch.equal(value, whole[key]) for key, value in weights(folder).items())


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_signal_in_an_evaluation(run: Run, undisturbed: Path, tmp_path: Path, ranks: int) -> None:
    folder = tmp_path / "run"
    slow = ("--evaluation.num_images", 2000, "--evaluation.batch_size", 4)
    options = (*slow, "--checkpoint.every_steps", 1000)
    process = start(folder, *options, ranks=ranks, said=subprocess.PIPE)
    wait_for(process, folder, 24)
    one = children(process.pid)[-1] if ranks else process.pid  # the other rank must learn of it
    os.kill(one, signal.SIGUSR2)
    output, errors = process.communicate(timeout=60)
    assert "interrupted after step 24" in output, errors
    assert process.returncode == (1 if ranks else 75), errors
    assert '"evaluation/rho2"' not in (folder / "metrics.jsonl").read_text()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000000024.pt"]
    if not ranks:
        done = run(SCRIPT, *SMALL, *options, "--output", folder)
        assert done.returncode == 0, done.stderr
        assert list(metrics(folder, "evaluation/rho2")) == [24, 36, 48]
        whole = weights(undisturbed)
        assert all(torch.equal(value, whole[key]) for key, value in weights(folder).items())


def test_a_finished_run_is_shown_again(run: Run, undisturbed: Path) -> None:
    before = (undisturbed / "weights.pth").read_bytes()
    done = run(SCRIPT, *SMALL, "--output", undisturbed)
    assert done.returncode == 0, done.stderr
    assert "rho2" in done.stdout
    assert (undisturbed / "weights.pth").read_bytes() == before


def test_other_options_are_refused_on_resuming(run: Run, undisturbed: Path) -> None:
    line = expect_error(run, *SMALL, "--output", undisturbed, "--optim.lr", 0.5)
    assert "optim.lr: 0.01 -> 0.5" in line
    line = expect_error(run, *SMALL, "--output", undisturbed, "--resume", "never")
    assert "holds checkpoints" in line


def test_a_checkpoint_cut_short(run: Run, undisturbed: Path, tmp_path: Path) -> None:
    cut = tmp_path / "checkpoints" / "step-000000048.pt"
    cut.parent.mkdir()
    cut.write_bytes((undisturbed / "checkpoints" / cut.name).read_bytes()[:-2000])
    line = expect_error(run, *SMALL, "--output", tmp_path)
    assert f"{cut} cannot be read" in line


def test_a_disk_that_fills_up_keeps_the_old_checkpoint(
    run: Run, undisturbed: Path, tmp_path: Path
) -> None:
    # A limit on the size of a file stands for a full disk: writing fails half-way.
    folder = tmp_path / "run"
    kill_at(folder, 8)
    old = folder / "checkpoints" / "step-000000005.pt"
    limited = "import resource, runpy, sys; sys.argv = sys.argv[1:]; "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    limited += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = command(SCRIPT, *SMALL, "--output", folder)
    done = subprocess.run(
        [words[0], "-c", limited, *words[1:]], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2, done.stderr
    assert f"error: cannot write {folder / 'checkpoints'}/" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    done = run(SCRIPT, *SMALL, "--output", folder)
    assert done.returncode == 0, done.stderr
    whole = weights(undisturbed)
    assert all(torch.equal(value, whole[key]) for key, value in weights(folder).items())
