"""pipeline/finetune.py as a user runs it: real processes, real ranks, real files."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.data import demo
from tests.conftest import ROOT, Run, command, environment
from tests.images import encode, index_tar, picture

SCRIPT = "pipeline/finetune.py"
SMALL = (
    *("--model.name", "tests.nets:dropout_mlp", "--train.batch_size", 500),
    *("--train.clean_epochs", 2, "--train.epochs", 2, "--checkpoint.every_steps", 5),
    *("--log.every_steps", 1, "--evaluation.num_images", 40, "--evaluation.every_epochs", 1),
    *("--log.panel_images", 2),
)  # 12 steps an epoch, 48 in all


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pth", weights_only=True)


def metrics(folder: Path, name: str) -> dict[int, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [(line["step"], line[name]) for line in lines if name in line]
    assert len(values) == len(dict(values)), "a step was recorded twice"
    return dict(values)


def children(pid: int) -> list[int]:
    """Processes started by one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def kill_at(folder: Path, step: int, *options: object, ranks: int = 0) -> None:
    """Start a run and kill -9 all of it once it has recorded ``step``."""
    process = subprocess.Popen(
        command(SCRIPT, *SMALL, "--output", folder, *options, ranks=ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        path = folder / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and f'"step": {step},' in path.read_text():
                break
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        # torchrun gives its workers sessions of their own: they would live on as orphans.
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "summary.json").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(
        command(SCRIPT, *SMALL, "--output", folder),
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert "Traceback" not in done.stderr
    return folder


def test_the_default_reaches_its_goal_on_two_ranks(run: Run, tmp_path: Path) -> None:
    """The README's first command, whole."""
    begin = time.monotonic()
    done = run(SCRIPT, "--output", tmp_path / "demo", ranks=2)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 240
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    assert before["num_samples"] == after["num_samples"] == 2000
    assert before["accuracy"] > 0.92
    assert after["rho2"] >= 1.4 * before["rho2"]
    assert after["accuracy"] >= before["accuracy"]
    assert summary["ranks"] == 2
    assert summary["steps"] == 37 * 60
    assert summary["images_per_second"] > 0
    assert "torch" in summary["versions"]
    assert f"{after['accuracy']:.2%}" in done.stdout


def test_what_a_run_leaves_behind(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == 48
    assert [entry["step"] for entry in summary["history"]] == [24, 36, 48]
    assert summary["before"] == summary["history"][0]
    assert summary["definition"]["num_candidates"] == 10
    names = sorted(p.name for p in (undisturbed / "checkpoints").iterdir())
    assert [n for n in names if n.startswith("step")] == ["step-000000045.pt", "step-000000048.pt"]
    assert "best.pt" in names
    losses = metrics(undisturbed, "train/loss")
    assert sorted(losses) == list(range(1, 49))
    rho2 = metrics(undisturbed, "train/rho2")
    assert sorted(rho2) == list(range(25, 49))
    reference = torch.load(undisturbed / "reference.pth", weights_only=True)
    assert not torch.equal(reference["1.weight"], weights(undisturbed)["1.weight"])


def test_tensorboard_shows_the_same_numbers(undisturbed: Path) -> None:
    board = EventAccumulator(str(undisturbed / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()
    wanted = {"loss", "cross_entropy", "regularizer", "rho2", "iterations", "flipped", "accuracy"}
    wanted |= {"lr", "images_per_second", "data_wait", "peak_memory_mib"}
    assert {f"train/{name}" for name in wanted} <= set(tags["scalars"])
    assert {"evaluation/accuracy", "evaluation/rho2"} <= set(tags["scalars"])
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    recorded = metrics(undisturbed, "train/loss")
    assert shown.keys() == recorded.keys()
    assert all(shown[step] == pytest.approx(recorded[step], rel=1e-6) for step in shown)
    panels = board.Images("perturbations")
    assert [panel.step for panel in panels] == [24, 36, 48]
    assert panels[0].width > 300
    assert any("hparams" in name for name in board.summary_metadata)


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
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(v, whole[key]) for key, v in weights(tmp_path / "cut").items())


def test_killed_on_two_ranks_and_resumed_on_one(run: Run, tmp_path: Path) -> None:
    # Dropout draws by rank, so the net here has none: the images and their order decide alone.
    # Sums are taken in another order, and a large step would blow the last bit up in no time, as
    # would choices that hang on it: which candidates to visit, whether to take one more tiny step.
    plain = ("--model.name", "mlp", "--optim.lr", 0.0005, "--train.accumulation", 1)
    plain += ("--regularizer.attack.visit", "all", "--regularizer.attack.linearize_at", "reached")
    kill_at(tmp_path / "two", 26, *plain, ranks=2)
    done = run(SCRIPT, *SMALL, *plain, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    more = ("--train.accumulation", 2)
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
    process = subprocess.Popen(
        command(SCRIPT, *SMALL, "--output", folder, "--checkpoint.every_steps", 1000),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = folder / "metrics.jsonl"
    while not (path.exists() and '"step": 7,' in path.read_text()):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "go on with --resume auto" in output
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
    options = (*SMALL, *slow, "--output", folder, "--checkpoint.every_steps", 1000)
    process = subprocess.Popen(
        command(SCRIPT, *options, ranks=ranks),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = folder / "metrics.jsonl"
    while not (path.exists() and '"step": 24,' in path.read_text()):
        assert process.poll() is None
        time.sleep(0.002)
    one = children(process.pid)[-1] if ranks else process.pid  # the other rank must learn of it
    os.kill(one, signal.SIGUSR2)
    output, errors = process.communicate(timeout=60)
    assert "stopped after step 24" in output, errors
    assert process.returncode == (1 if ranks else 75), errors
    assert '"evaluation/rho2"' not in path.read_text()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000000024.pt"]
    if not ranks:
        done = run(SCRIPT, *options)
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


def expect_error(run: Run, *options: object, ranks: int = 0, script: str = SCRIPT) -> str:
    """Run, expect one clear line, and give it."""
    done = run(script, *options, ranks=ranks)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    if not ranks:  # torchrun adds a report of its own
        assert done.returncode == 2
        assert "Traceback" not in done.stderr, done.stderr
    return lines[0]


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


def test_a_loss_that_is_not_finite_stops_all_ranks(run: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--model.name", "tests.nets:exploding", "--output", tmp_path / "run")
    line = expect_error(run, *options, ranks=2)
    assert "not finite in step 1, for 500 images" in line
    assert ".png" in line  # ids
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_a_diverging_run_keeps_its_last_good_checkpoint(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = expect_error(run, *SMALL, "--train.clean_lr", 1e6, "--output", folder)
    assert "not finite in step" in line
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in state["model"].values()), path


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
    assert "cannot write the checkpoint" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    done = run(SCRIPT, *SMALL, "--output", folder)
    assert done.returncode == 0, done.stderr
    whole = weights(undisturbed)
    assert all(torch.equal(value, whole[key]) for key, value in weights(folder).items())


def test_mistakes_on_two_ranks_are_said_once(run: Run, tmp_path: Path) -> None:
    line = expect_error(run, "--data.train", tmp_path / "no.parquet", ranks=2)
    assert "data.train: no file" in line
    line = expect_error(run, "--optim.lrr", 3, ranks=2)
    assert "optim.lrr" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train.batch_size", 501, "--train.accumulation", 2), "501 is not divisible by 1 ranks"),
        (("--runtime.device", "cuda"), "torch sees no GPU"),
        (("--model.weights", "nothing.pth"), "model.weights: no file nothing.pth"),
        (("--model.name", "resnet18"), "does not take images of 1 x 28 x 28"),
        (("--model.num_classes", 4), "labels lie outside the net's 4 classes"),
        (("--output", "/proc/nothing"), "output: /proc/nothing cannot be written"),
        (("--resume", "nowhere.pt"), "resume: no file nowhere.pt"),
        (("--optim.lr", "fast"), "optim.lr"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, options: tuple, words: str) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert words in expect_error(run, "--output", tmp_path / "run", *options)


def test_an_image_that_breaks_during_training(run: Run, tmp_path: Path) -> None:
    members = {
        f"{k % 2}/{k:03d}.png": encode(picture(28, 28, k).convert("L"), "PNG") for k in range(60)
    }
    good = index_tar(tmp_path / "photos.tar", members)
    data = bytearray((tmp_path / "photos.tar").read_bytes())
    start = int(good.offset[17])
    data[start : start + int(good.length[17])] = bytes(int(good.length[17]))
    (tmp_path / "photos.tar").write_bytes(data)
    name = good.id(17)
    options = (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.train", good.path),
        *("--data.val", demo.prepare()["val"], "--train.epochs", 1),
        *("--train.batch_size", 20, "--train.clean_epochs", 1, "--evaluation.num_images", 20),
        *("--model.num_classes", 10, "--output", tmp_path / "run"),
    )
    assert name in expect_error(run, *options, ranks=2)
    done = run(SCRIPT, *options, "--data.on_error", "skip", ranks=2)
    assert done.returncode == 0, done.stderr
    assert f"left out {name}" in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped"] == [name]
    evaluation = (
        *("--config", ROOT / "configs" / "demo.yaml", "--data.val", good.path),
        *("--model.num_classes", 2, "--output", tmp_path / "e"),
    )
    assert name in expect_error(run, *evaluation, script="pipeline/evaluate.py")
    done = run("pipeline/evaluate.py", *evaluation, "--data.on_error", "skip")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["skipped"] == [name]
    assert (summary["num_samples"], summary["num_skipped"]) == (59, 1)


def test_dry_run_says_what_would_run_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run(SCRIPT, "--output", tmp_path / "run", "--dry_run", "true")
    assert done.returncode == 0, done.stderr
    assert "6,000 images to train on, 2,000 held out" in done.stdout
    assert "1500 clean steps, then 720 with Deep Defense" in done.stdout
    assert not (tmp_path / "run").exists()


def test_half_precision_training(run: Run, tmp_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        folder = tmp_path / precision
        done = run(SCRIPT, *SMALL, "--runtime.precision", precision, "--output", folder)
        assert done.returncode == 0, done.stderr
        losses = metrics(folder, "train/loss")
        assert np.isfinite(list(losses.values())).all()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["after"]["rho2"] > summary["before"]["rho2"]
    assert min(metrics(tmp_path / "fp16", "train/loss_scale").values()) >= 1


def test_one_run_a_folder(run: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--train.epochs", 200, "--output", tmp_path / "run")
    process = subprocess.Popen(
        command(SCRIPT, *options), env=environment(), stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    line = expect_error(run, *options)
    assert f"is being written by process {process.pid} on " in line
    process.kill()
    process.wait()
    done = run(SCRIPT, *SMALL, "--train.epochs", 200, "--output", tmp_path / "run", "--dry_run", 1)
    assert "another process" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_find_one_another(run: Run, tmp_path: Path, rank: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begin = time.monotonic()
    done = subprocess.run(
        command(SCRIPT, "--output", tmp_path / "run", "--runtime.connect_timeout", 2),
        env=environment() | {name: str(value) for name, value in alone.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"127.0.0.1:{port} for 2 s" in lines[0]
    assert f"rank {rank} of 2 on {socket.gethostname()}" in lines[0]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begin < 40


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, how: signal.Signals) -> None:
    options = (
        *SMALL,
        "--train.batch_size",
        300,
        "--output",
        tmp_path / "run",
        "--runtime.timeout",
        5,
    )
    process = subprocess.Popen(
        command(SCRIPT, *options, ranks=3),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "run" / "metrics.jsonl"
    while not (path.exists() and '"step": 3,' in path.read_text()):
        assert process.poll() is None
        time.sleep(0.002)
    victim = children(process.pid)[-1]
    rank = re.search(rb"\0RANK=(\d)", Path(f"/proc/{victim}/environ").read_bytes())[1].decode()
    begin = time.monotonic()
    os.kill(victim, how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    if how == signal.SIGSTOP:
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert any(f"rank {rank} on {socket.gethostname()}" in line for line in lines), errors
        assert all("lost the others" in line for line in lines)
    assert time.monotonic() - begin < 60
