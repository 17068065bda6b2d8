"""Index, plan and scan for as many images as ILSVRC-2012 has, on generated data."""

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

from benchmarks.common import Row
from pipeline.config import DataConfig
from pipeline.data import ilsvrc, index, plan, scan

ILSVRC_TRAIN = ilsvrc.ILSVRC_COUNTS["train"]
SPARSE_MEMBERS, SPARSE_BYTES = 100_000, 110_000  # members of a sparse tar, and bytes of each


def generated_rows(num_images: int) -> pa.Table:
    """Rows of an index like ILSVRC's, in one archive."""
    rng = np.random.default_rng(0)
    names = pa.array([f"n{i // 1281:08d}/n{i // 1281:08d}_{i}.JPEG" for i in range(num_images)])
    constant = {"file": "ILSVRC2012_img_train.tar", "format": "JPEG", "mode": "RGB"}
    return pa.table(
        {
            "id": names,
            "offset": np.arange(num_images, dtype=np.int64) * SPARSE_BYTES,
            "length": rng.integers(20_000, 200_000, num_images, dtype=np.int32),
            "label": (np.arange(num_images) // 1282).astype(np.int32),
            "width": rng.integers(200, 800, num_images, dtype=np.int32),
            "height": rng.integers(200, 800, num_images, dtype=np.int32),
            **{k: pa.array([v] * num_images).dictionary_encode() for k, v in constant.items()},
        }
    ).select(index.SCHEMA.names)


def in_new_process(function: Callable[..., Row], *arguments: Any) -> Row:
    """Run a function in a new process, so that the process's memory is that of the function."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def load_index(path: str) -> Row:
    """Load an index; returns the time and the growth of the peak memory."""
    before = peak_memory_mib()
    begin = time.perf_counter()
    loaded = index.read(path)
    seconds = time.perf_counter() - begin
    return {"rows": len(loaded), "seconds": seconds, "memory_mib": peak_memory_mib() - before}


def peak_memory_mib() -> float:
    """Peak resident memory of this process, without that of its parent, unlike getrusage."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def load(folder: Path) -> Row:
    """Load an index of ILSVRC's size."""
    path = folder / "train.parquet"
    names = [f"class {k}" for k in range(1000)]
    index.write(path, generated_rows(ILSVRC_TRAIN), folder, names)
    return in_new_process(load_index, str(path))


def epoch(_: Path) -> Row:
    """Compute order and crop windows of one epoch, in batches of 256, as in training."""
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


def write_sparse_tar(path: Path, num_members: int) -> None:
    """Write a tar of small JPEGs, each padded by a hole, which takes no space on disk."""
    image = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image, "JPEG")
    padding = SPARSE_BYTES - len(image.getvalue()) - 2
    with path.open("wb") as file:
        for number in range(num_members):
            info = tarfile.TarInfo(f"class{number % 100:03d}/{number:06d}.JPEG")
            info.size = SPARSE_BYTES
            file.write(info.tobuf())
            file.write(image.getvalue())
            file.seek(padding, os.SEEK_CUR)
            file.write(b"\xff\xd9")  # the end mark that the scan looks for
            file.seek(-SPARSE_BYTES % 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)


def tar(folder: Path) -> Row:
    """Index a tar of 100,000 members of 110 kB."""
    path = folder / "sparse.tar"
    write_sparse_tar(path, SPARSE_MEMBERS)
    begin = time.perf_counter()
    rows, _ = scan.scan_tar(path)
    seconds = time.perf_counter() - begin
    assert len(rows) == SPARSE_MEMBERS, rows.rejected[:3]
    return {"rows": len(rows), "seconds": seconds, "rows_per_second": len(rows) / seconds}


PARTS = {"index": load, "plan": epoch, "scan": tar}


def benchmark(_options: argparse.Namespace) -> list[Row]:
    """One row for each of index, plan and scan."""
    rows = []
    for name, run in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"name": name, **run(Path(folder))})
    return rows
