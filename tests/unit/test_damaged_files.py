"""Files that hold code are refused without running it."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.mistakes import whole
from tests.unit.mistakes.case import EVALUATE, FINETUNE, call
from tests.unit.mistakes.damaged_data import evaluated


def weights(folder: Path, code: bytes) -> Sequence[object]:
    (folder / "w.pth").write_bytes(code)
    return (EVALUATE, "--model.weights", folder / "w.pth", "--dry_run", "true")


def safetensors(folder: Path, code: bytes) -> Sequence[object]:
    (folder / "w.safetensors").write_bytes(code)
    return (EVALUATE, "--model.weights", folder / "w.safetensors", "--dry_run", "true")


def checkpoint(folder: Path, code: bytes) -> Sequence[object]:
    path = whole.index(folder)
    (folder / "step.pt").write_bytes(code)
    options = ("--resume", folder / "step.pt", "--dry_run", "true")
    return (FINETUNE, *whole.run_options(path), *options)


def mean(folder: Path, code: bytes) -> Sequence[object]:
    (folder / "mean.npy").write_bytes(code)
    return evaluated(whole.index(folder), "--data.mean", folder / "mean.npy")


def cifar10(folder: Path, code: bytes) -> Sequence[object]:
    (folder / "data_batch_1").write_bytes(code)
    return ("tools/pack.py", "cifar10", folder, "--out", folder / "out")


def caffe(folder: Path, code: bytes) -> Sequence[object]:
    (folder / "n.npz").write_bytes(code)
    return ("tools/caffe.py", folder / "n.npz", folder / "n.pth")


def caffe_objects(folder: Path, code: bytes) -> Sequence[object]:
    """The code inside a real .npz, as numpy stores arrays of objects."""
    header = io.BytesIO()
    np.save(header, np.array([{}]), allow_pickle=True)
    with zipfile.ZipFile(folder / "n.npz", "w") as archive:
        archive.writestr("conv1_w.npy", header.getvalue()[:128] + code)
    return ("tools/caffe.py", folder / "n.npz", folder / "n.pth")


def example(folder: Path, code: bytes) -> Sequence[object]:
    whole.write_tree(whole.evaluation(), folder / "run")
    (folder / "run/results/0-of-1/examples/3.npz").write_bytes(code)
    return ("tools/report.py", "merge", folder / "run")


@pytest.mark.parametrize(
    "make_argv",
    [weights, safetensors, checkpoint, mean, cifar10, caffe, caffe_objects, example],
)
def test_no_code_is_run(make_argv: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(*make_argv(tmp_path, whole.code(tmp_path / "ran")))
    assert ended.code == 2, ended
    assert "error: " in ended.stderr
    assert not (tmp_path / "ran").exists()
