"""Runs whose files cannot grow any more: one line, and nothing that was written is lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import disk_message
from pipeline.runtime.monitor import Monitor
from tests.helpers.disk import disk_full
from tests.helpers.images import encode
from tests.helpers.in_process import EVALUATE, call
from tests.helpers.parquet import write_parquet
from tests.helpers.tiny import finetune, kill_at_step


@pytest.mark.parametrize(
    ("size", "name"),
    [
        pytest.param(1000, "manifest.json", marks=pytest.mark.slow),
        (6800, "examples/0.npz"),
        (20_000, "rank0.jsonl"),
    ],
)
def test_an_evaluation_without_disk_space(tmp_path: Path, size: int, name: str) -> None:
    # Without diagnostics, the results of the first batch are shorter than a picture.
    options = (
        *("--evaluation.num_images", 100, "--evaluation.batch_size", 10),
        *("--evaluation.diagnostics", "false"),
    )
    evaluate = (EVALUATE, *options, "--output", tmp_path)
    with disk_full(size):
        ended = call(*evaluate)
    assert ended.code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path}/"), line
    assert (
        f"/results/0-of-1/{name}: File too large; results written before are kept: free some space"
        in line
    )
    assert not list(tmp_path.rglob(".*.tmp-*"))
    results = tmp_path / "results" / "0-of-1" / "rank0.jsonl"
    before = results.read_text().rpartition("\n")[0] if results.exists() else ""
    ended = call(*evaluate)
    assert ended.code == 0, ended.stderr
    after = results.read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 100


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), [(3000, "samples.parquet"), (20_000, "tensorboard")])
def test_joining_an_evaluation_without_disk_space(tmp_path: Path, size: int, name: str) -> None:
    evaluate = (EVALUATE, "--evaluation.num_images", 100, "--output", tmp_path)
    assert call(*evaluate).code == 0
    with disk_full(size):
        ended = call(*evaluate)
    assert ended.code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert f"error: cannot write {tmp_path}/{name}: File too large" in line
    assert call(*evaluate).code == 0


def test_tensorboard_without_disk_space(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its thread may fail at any time until the file is closed."""
    values = np.random.default_rng(0).normal(size=10_000)

    def record() -> None:
        with disk_full(4000), Monitor(tmp_path, shown=True) as monitor:
            for step in range(50):
                monitor.histogram(step, "values", values)

    with pytest.raises(OSError, match="File too large") as error:
        record()
    assert disk_message(error.value).startswith(f"cannot write {tmp_path}/tensorboard: File too")
    assert "Traceback" not in capfd.readouterr().err


def test_a_training_without_disk_space(tmp_path: Path) -> None:
    with disk_full(3000):
        ended = finetune(tmp_path, "--log.every_steps", 1)
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()  # of TensorBoard or of reference.pth, whichever is first
    assert line.startswith("error: cannot write ")
    assert "File too large" in line


def test_a_checkpoint_without_disk_space_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_five = "--checkpoint.every_steps", 5
    with monkeypatch.context() as patch:
        kill_at_step(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "run", *every_five)
    checkpoints = tmp_path / "run" / "checkpoints"
    old = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    assert "step-000000006.pt" in old  # of the evaluation
    with disk_full(200_000):  # less than a checkpoint
        ended = finetune(tmp_path / "run", *every_five)
    assert ended.code == 2, ended.stderr
    assert f"error: cannot write {checkpoints}/" in ended.stderr
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == old
    ended = finetune(tmp_path / "run", *every_five)
    assert ended.code == 0, ended.stderr
    assert f"resuming from {checkpoints / 'step-000000006.pt'}, step 6" in ended.stdout


def test_copies_of_parquet_files_without_disk_space(tmp_path: Path) -> None:
    """The copy that fits is kept, and the command resumes with the other one."""
    noise = np.random.default_rng(0).integers(0, 255, (2, 60, 60, 3), dtype=np.uint8)
    small, large = (encode(Image.fromarray(image), "PNG") for image in noise)
    write_parquet(tmp_path / "a.parquet", [small], [0])
    write_parquet(tmp_path / "b.parquet", [small, large] * 9, [0] * 18)
    files, out = tmp_path / "[ab].parquet", tmp_path / "i.parquet"
    argv = ("tools/index.py", "parquet", files, "--out", out, "--repack", tmp_path / "copies")
    with disk_full(20_000):
        ended = call(*argv)
    assert ended.code == 2, ended.stderr
    assert f"error: cannot write {tmp_path}/copies/b.parquet: File too large; " in ended.stderr
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["a.parquet"]
    ended = call(*argv)
    assert ended.code == 0, ended.stderr
    assert "1 of 2 copies are in" in ended.stderr
    assert "19 images of 1 class" in ended.stdout
