"""The data path at ILSVRC-2012's size, on generated data."""

import argparse
import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data import index, plan, scan

from .common import Row

ILSVRC_TRAIN = 1_281_167
SPARSE_MEMBERS, SPARSE_BYTES = 100_000, 110_000


def generated_rows(number: int) -> pa.Table:
    """Rows like ILSVRC's, in one archive."""
    rng = np.random.default_rng(0)
    names = pa.array([f"n{i // 1281:08d}/n{i // 1281:08d}_{i}.JPEG" for i in range(number)])
    constant = {"file": "ILSVRC2012_img_train.tar", "format": "JPEG", "mode": "RGB"}
    return pa.table(
        {
            "id": names,
            "offset": np.arange(number, dtype=np.int64) * SPARSE_BYTES,
            "length": rng.integers(20_000, 200_000, number, dtype=np.int32),
            "label": (np.arange(number) // 1282).astype(np.int32),
            "width": rng.integers(200, 800, number, dtype=np.int32),
            "height": rng.integers(200, 800, number, dtype=np.int32),
            **{k: pa.array([v] * number).dictionary_encode() for k, v in constant.items()},
        }
    ).select(index.SCHEMA.names)


def in_new_process(function: Callable[..., Row], *arguments: Any) -> Row:
    """Run in a fresh process, so that memory is that of the function alone."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def load_index(path: str) -> Row:
    """Load an index; the growth of the process and the time."""
    before = peak_memory_mib()
    begin = time.perf_counter()
    loaded = index.read(path)
    seconds = time.perf_counter() - begin
    return {"rows": len(loaded), "seconds": seconds, "memory_mib": peak_memory_mib() - before}


def peak_memory_mib() -> float:
    """Peak resident memory of this process (getrusage would count what it was forked from)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def load(folder: Path) -> Row:
    """Loading an index of ILSVRC's size."""
    path = folder / "train.parquet"
    names = [f"class {k}" for k in range(1000)]
    index.write(path, generated_rows(ILSVRC_TRAIN), folder, names)
    return in_new_process(load_index, str(path))


def epoch(_: Path) -> Row:
    """Order and windows of one epoch, in batches of 256 as training asks for them."""
    rng = np.random.default_rng(0)
    width, height = rng.integers(200, 800, (2, ILSVRC_TRAIN))
    config = DataConfig()
    begin = time.perf_counter()
    rows = plan.order(ILSVRC_TRAIN, seed=0, epoch=0)
    ordered = time.perf_counter() - begin
    for start in range(0, ILSVRC_TRAIN, 256):
        batch = rows[start : start + 256]
        plan.training_windows(width[batch], height[batch], 0, 0, start, config)
    seconds = time.perf_counter() - begin
    return {"rows": ILSVRC_TRAIN, "seconds": seconds, "order_seconds": ordered}


def sparse_archive(path: Path, members: int) -> None:
    """A tar of small JPEGs, each followed by a hole up to its stated size; little on disk."""
    image = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image, "JPEG")
    padding = SPARSE_BYTES - len(image.getvalue()) - 2
    with path.open("wb") as file:
        for number in range(members):
            info = tarfile.TarInfo(f"class{number % 100:03d}/{number:06d}.JPEG")
            info.size = SPARSE_BYTES
            file.write(info.tobuf())
            file.write(image.getvalue())
            file.seek(padding, os.SEEK_CUR)
            file.write(b"\xff\xd9")  # the end mark that the scan looks for
            file.seek(-SPARSE_BYTES % 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)


def tar(folder: Path) -> Row:
    """Indexing a tar of 100,000 members of 110 kB."""
    path = folder / "sparse.tar"
    sparse_archive(path, SPARSE_MEMBERS)
    begin = time.perf_counter()
    rows, _ = scan.scan_tar(path)
    seconds = time.perf_counter() - begin
    assert len(rows) == SPARSE_MEMBERS, rows.rejected[:3]
    return {"rows": len(rows), "seconds": seconds, "rows_per_second": len(rows) / seconds}


PARTS = {"index": load, "plan": epoch, "scan": tar}


def benchmark(_options: argparse.Namespace) -> list[Row]:
    """A row for each of index, plan and scan."""
    rows = []
    for name, run in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"name": name, **run(Path(folder))})
    return rows
