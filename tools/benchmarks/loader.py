"""This project's loader compared with torchvision's DataLoader and with DALI's file reader."""

import argparse
import contextlib
import io
import itertools
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali.pipeline import pipeline_def
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import Row, device_of, medians, spread, synchronise, training_loader
from pipeline.config import DataConfig
from pipeline.data import index, scan
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.data.tar_members import append_member
from pipeline.runtime import machine

BATCH, IMAGES = 64, 1024  # number of images in a batch, and in a repeat
WARM_UP = 6  # batches before the timing starts
DATA = DataConfig()
assert not isinstance(DATA.mean, str)  # the default has a number for each channel
MEAN: list[float] = DATA.mean

Batches = Generator[Any, None, None]


def _pair(bounds: list[float]) -> tuple[float, float]:
    low, high = bounds
    return low, high


class Files224(Dataset):
    """Image files with torchvision's training transforms."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    DATA.crop_size, _pair(DATA.crop_scale), _pair(DATA.crop_ratio), antialias=True
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, DATA.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[number]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


class Endless(torch.utils.data.Sampler[list[int]]):
    """Endless shuffled batches, so that workers never wait for a new epoch."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        numbers = (n for _ in itertools.count() for n in torch.randperm(self.length).tolist())
        while True:
            yield list(itertools.islice(numbers, BATCH))


def torchvision_loader(files: list[tuple[Path, int]], device: torch.device) -> Batches:
    """torchvision's DataLoader, with as many workers as cores."""
    loader = DataLoader(
        Files224(files),
        batch_sampler=Endless(len(files)),
        num_workers=machine.cores(),
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def dali_reader(files: list[tuple[Path, int]], device: torch.device) -> Batches:
    """DALI's file reader and fused random crop, as in its examples."""
    gpu = device.type == "cuda"

    @pipeline_def(  # pyright: ignore[reportCallIssue] (its stub requires a function)
        batch_size=BATCH,
        num_threads=machine.cores(),
        device_id=device.index if gpu else None,
        prefetch_queue_depth=DATA.prefetch,
        exec_dynamic=True,
    )
    def graph() -> Any:
        paths, labels = [str(path) for path, _ in files], [label for _, label in files]
        jpegs, labels = fn.readers.file(files=paths, labels=labels, random_shuffle=True)
        images = fn.decoders.image_random_crop(
            jpegs,
            device="mixed" if gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            random_area=DATA.crop_scale,
            random_aspect_ratio=DATA.crop_ratio,
        )
        images = fn.resize(images, size=[DATA.crop_size, DATA.crop_size])
        images = fn.crop_mirror_normalize(  # pyright: ignore[reportCallIssue]
            images,  # pyright: ignore[reportArgumentType]
            dtype=types.DALIDataType.FLOAT,
            output_layout="CHW",
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in DATA.std],
            mirror=fn.random.coin_flip(),
        )
        return images, labels

    pipeline = graph()
    pipeline.build()
    while True:
        images, labels = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()), torch.from_dlpack(labels.as_tensor())


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each loader: images/s, and their ratio to torchvision's."""
    device, num_images = device_of(options), options.num_images or IMAGES
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or _generated(Path(folder))
        photos = index.read(str(data), option="--data")
        files = _unpacked(photos, Path(folder))
        size, half = min(BATCH, len(photos)), options.precision != "fp32"

        def own_loader() -> Batches:
            yield from training_loader(photos, size, device, half)

        loaders: dict[str, Callable[[], Batches]] = {
            "torchvision": lambda: torchvision_loader(files, device),
            "dali reader": lambda: dali_reader(files, device),
            "this project": own_loader,
        }
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(options.repeats):
            for name, make in loaders.items():
                with contextlib.closing(make()) as batches:
                    speeds[name].append(images_per_second(batches, num_images))
    typical = medians(speeds)
    return [
        {
            "name": name,
            "images_per_second": typical[name],
            "ratio": typical[name] / typical["torchvision"],
            "ratio_to_dali_reader": typical[name] / typical["dali reader"],
            "spread": spread(speeds[name]),
        }
        for name in loaders
    ]


def images_per_second(batches: Batches, num_images: int) -> float:
    """Images per second after a warm-up, which fills the queues of prefetched batches."""
    for _ in range(WARM_UP):
        next(batches)
    done, begin, device = 0, time.perf_counter(), torch.device("cpu")
    while done < num_images:
        batch = next(batches)
        images = batch[0] if isinstance(batch, (tuple, list)) else batch.images
        done, device = done + len(images), images.device
    synchronise(device)
    return done / (time.perf_counter() - begin)


def _generated(folder: Path, num_images: int = 256) -> Path:
    """Write a tar of JPEGs with ILSVRC's typical size in pixels and bytes; returns its index."""
    tar, rng = folder / "generated.tar", np.random.default_rng(0)
    with tarfile.open(tar, "w") as archive:
        for k in range(num_images):
            coarse = Image.fromarray(rng.integers(0, 255, (75, 100, 3), dtype=np.uint8))
            jpeg = io.BytesIO()
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
            append_member(archive, f"class/{k}.jpg", jpeg.getvalue())
    rows, classes = scan.scan_tar(tar)
    path = tar.with_suffix(".parquet")
    index.write(path, rows.table(), folder, classes, {tar.name: tar})
    return path


def _unpacked(photos: Index, folder: Path) -> list[tuple[Path, int]]:
    """Write the images to files, which the other two loaders read."""
    files = []
    reader = Files(photos)
    for row, label in enumerate(photos.label.tolist()):
        path = folder / f"{row}.jpeg"
        (view,) = reader.views(np.array([row]))
        path.write_bytes(view.tobytes())
        files.append((path, label))
    return files
