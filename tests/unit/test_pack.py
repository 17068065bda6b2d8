"""Array data sets as tars of PNGs, read back exactly."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data import convert, demo, index, scan
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader
from pipeline.data.mapped_files import Files
from pipeline.errors import UserError
from tests.helpers.images import decode
from tests.helpers.in_process import in_process


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_arrive_unchanged(tmp_path: Path, zipped: bool) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 5, 6), np.uint8), np.array([3, 1, 0, 2, 11, 10, 0])
    close = gzip.compress if zipped else bytes
    (tmp_path / "images").write_bytes(close(idx_bytes(images)))
    (tmp_path / "labels").write_bytes(close(idx_bytes(labels.astype(np.uint8))))
    out = tmp_path / "digits.tar"
    done = in_process(
        "tools/pack.py", "idx", tmp_path / "images", tmp_path / "labels", "--out", out
    )
    assert done.returncode == 0, done.stderr
    done = in_process("tools/index.py", "tar", out, "--out", tmp_path / "digits.parquet")
    assert done.returncode == 0, done.stderr
    digits_index = index.read(str(tmp_path / "digits.parquet"))
    assert digits_index.label.tolist() == labels.tolist()
    views = Files(digits_index).views(np.arange(7))
    assert all(
        np.array_equal(np.asarray(decode(v.tobytes())), i)
        for v, i in zip(views, images, strict=True)
    )


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(np.zeros((2, 3, 3), np.uint8)))
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([0, 1], np.uint8)))
    (tmp_path / "link").symlink_to(tmp_path / "labels")
    for name in ("images", "labels", "link"):
        before = (tmp_path / name).read_bytes()
        inputs = (tmp_path / "images", tmp_path / "labels")
        done = in_process("tools/pack.py", "idx", *inputs, "--out", tmp_path / name)
        assert done.returncode == 2
        assert "which this command reads; give another --out" in done.stderr
        assert (tmp_path / name).read_bytes() == before
    folder = tmp_path / "cifar"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"x")
    (folder / "val.tar").symlink_to(folder / "test_batch")
    done = in_process("tools/pack.py", "cifar10", folder, "--out", folder)
    assert "which this command reads; give another --out" in done.stderr


def test_idx_mistakes(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"\x01\x02\x03\x04\x05")
    with pytest.raises(UserError, match="cannot be read as IDX"):
        convert.read_idx(tmp_path / "junk")
    (tmp_path / "cut").write_bytes(idx_bytes(np.zeros((4, 2, 2), np.uint8))[:-3])
    with pytest.raises(UserError, match="cannot be read as IDX"):
        convert.read_idx(tmp_path / "cut")
    with pytest.raises(UserError, match="no file"):
        convert.read_idx(tmp_path / "none")


def test_cifar10_batches(tmp_path: Path) -> None:
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": data, b"labels": [4, 9]}, protocol=2))
    images, labels = convert.read_cifar10(tmp_path / "batch")
    assert labels.tolist() == [4, 9]
    assert images[1, 2, 3].tolist() == [data[1, c * 1024 + 2 * 32 + 3] for c in range(3)]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match="refused to load"):
        convert.read_cifar10(tmp_path / "batch")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_real_cifar10(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "cifar10-subset" / "cifar-10-batches-py"
    done = in_process("tools/pack.py", "cifar10", folder, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for part, count in (("train", 5085), ("val", 1017)):
        rows, classes = scan.scan_tar(tmp_path / f"{part}.tar")
        assert len(rows) == count
        assert classes.ids[0] == "airplane"


def test_embedded_digits_reach_the_net_exactly() -> None:
    paths = demo.prepare()
    digits = index.read(str(paths["val"]))
    assert len(digits) == 2000
    assert sum(p.stat().st_size for p in (Path(demo.__file__).parent / "digits").iterdir()) < 2e6
    config = DataConfig(crop_size=28, resize_size=28, channels=1, mean=[0.25], std=[0.5])
    specs = evaluation_specs(digits, np.arange(300), config, 128)
    loader = Loader(digits, specs, config, torch.device("cpu"), 128, threads=2)
    images = torch.cat([batch.images for batch in loader])
    stored = convert.read_idx(Path(demo.__file__).parent / "digits" / "val-images.idx3-ubyte.gz")
    expected = (torch.from_numpy(stored[:300].copy()).float() / 255 - 0.25) / 0.5
    assert (images[:, 0] - expected).abs().max() < 1e-5


def test_prepare_is_done_once(cache: Path) -> None:
    first = demo.prepare()["train"].stat().st_mtime_ns
    assert demo.prepare()["train"].stat().st_mtime_ns == first
    assert not list(cache.glob(".*"))


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DEEPDEFENSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="DEEPDEFENSE_CACHE"):
        demo.prepare()
