"""The loader on the device: pixels of each kind of JPEG, order, labels, damaged files."""

import time
from dataclasses import replace

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from PIL import Image
from torch import Tensor

from gpu_checks.check import Record, Setup, Skip
from gpu_checks.images import (
    BASELINE,
    KINDS,
    SIZES,
    index_of,
    photo,
    photos,
    photos_of_kind,
    write_jpeg,
)
from pipeline.config import DataConfig, TrainConfig
from pipeline.data.batches import TrainingPlan, evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader, UndecodableImages
from pipeline.data.plan import BatchSpec, training_windows
from pipeline.data.source import decoding_threads
from pipeline.errors import first_line

CPU = torch.device("cpu")
# Decoders differ in rounding, in the inverse DCT and in how they enlarge the colour channels: near
# coloured edges by more than 2/255, elsewhere by less. A wrong window, channel order or
# normalisation changes the mean by ten times as much.
MEAN_LIMIT = 2.0  # in 1/255
SHARE_LIMIT = 0.1  # of values that differ by more than MEAN_LIMIT: colours near edges
NUM_KEPT = 700  # bytes of the damaged JPEG: its header and its first blocks


def data_config(setup: Setup) -> DataConfig:
    """Preprocessing for images of the setup's side."""
    side = setup.size.side
    return DataConfig(crop_size=side, resize_size=side * 8 // 7)


def raw_pixels(setup: Setup) -> DataConfig:
    """Preprocessing that keeps pixels as they are, from 0 to 255."""
    return replace(data_config(setup), mean=[0.0] * 3, std=[1 / 255] * 3)


def load(
    photo_index: Index, specs: list[BatchSpec], config: DataConfig, device: torch.device
) -> list[Batch]:
    """All batches of the specs."""
    size = max(len(spec.rows) for spec in specs)
    return list(Loader(photo_index, specs, config, device, size, decoding_threads(config)))


def compared_images(setup: Setup, num_images: int) -> Tensor:
    """Normalised centre crops of the first photos, decoded by the CPU."""
    config, photo_index = data_config(setup), photos(setup)
    rows = np.arange(num_images) % len(photo_index)
    (batch,) = load(
        photo_index, [*evaluation_specs(photo_index, rows, config, num_images)], config, CPU
    )
    return batch.images


def decoding(setup: Setup, record: Record) -> None:
    """Crops of each kind of JPEG: the device's pipeline beside the CPU's, and beside PIL."""
    config = raw_pixels(setup)
    for kind in KINDS:
        photo_index = photos_of_kind(setup, kind)
        rows = np.arange(len(photo_index))
        width, height = photo_index.width[rows], photo_index.height[rows]
        centre = [*evaluation_specs(photo_index, rows, config, len(rows))]
        random = [BatchSpec(rows, training_windows(width, height, 0, 0, 0, config))]
        try:
            images = load(photo_index, centre, config, setup.device)[0].images.cpu()
            _compare(record, f"{kind}, centre crops, PIL", images, _by_pil(photo_index, config))
            if setup.on_gpu:
                expected = load(photo_index, centre, config, CPU)[0].images
                _compare(record, f"{kind}, centre crops, CPU", images, expected)
                images = load(photo_index, random, config, setup.device)[0].images.cpu()
                expected = load(photo_index, random, config, CPU)[0].images
                _compare(record, f"{kind}, random crops, CPU", images, expected)
        except (UndecodableImages, RuntimeError) as error:  # the other kinds may still decode
            record.fail(f"{kind}: decodes", first_line(error))


def _by_pil(photo_index: Index, config: DataConfig) -> Tensor:
    """(N, 3, S, S) centre crops by PIL and torchvision."""
    crops = []
    for file in photo_index.files:
        with Image.open(photo_index.root / file) as image:
            pixels = transforms.pil_to_tensor(image.convert("RGB"))
        resized = transforms.resize(pixels, [config.resize_size])
        crop = transforms.center_crop(resized, [config.crop_size] * 2)
        crops.append(crop.float())
    return torch.stack(crops)


def _compare(record: Record, name: str, images: Tensor, expected: Tensor) -> None:
    difference = (images.float() - expected).abs()
    of_images = difference.flatten(1).mean(dim=1)
    record.at_most(f"{name}: mean of the worst image, 1/255", of_images.max().item(), MEAN_LIMIT)
    record.note(f"{name}: mean, 1/255", of_images.mean().item())
    record.note(f"{name}: largest, 1/255", difference.max().item())
    share = (difference > MEAN_LIMIT).float().mean().item()
    record.at_most(f"{name}: share beyond {MEAN_LIMIT:g}/255", share, SHARE_LIMIT)


def order(setup: Setup, record: Record) -> None:
    """Rows, labels and pixels of two epochs: those of the plan, and the same again."""
    photo_index, config = photos(setup), data_config(setup)
    train = TrainConfig(batch_size=min(16, len(photo_index)))
    plan = TrainingPlan(photo_index, config, train, rank=0, size=1)
    specs = [*plan.specs(0, 2 * plan.steps_per_epoch)]
    first, second = (load(photo_index, specs, config, setup.device) for _ in range(2))
    planned = np.concatenate([spec.rows for spec in specs])
    rows = np.concatenate([batch.rows for batch in first])
    labels = torch.cat([batch.labels for batch in first])
    record.equal("batches", len(first), len(specs))
    record.true("rows in the plan's order", bool(np.array_equal(rows, planned)))
    expected_labels = photo_index.label[planned].tolist()
    record.true("labels of these rows", labels.tolist() == expected_labels)
    record.equal("device", labels.device.type, setup.device.type)
    pairs = zip(first, second, strict=True)
    same = all(torch.equal(one.images, two.images) for one, two in pairs)
    record.true("same pixels when decoded again", same, required=not setup.on_gpu)


def half_input(setup: Setup, record: Record) -> None:
    """data.half_input: fp16 images in channels_last memory, near those in fp32."""
    if not setup.on_gpu:
        raise Skip("data.half_input has no effect on a CPU")
    photo_index, config = photos(setup), data_config(setup)
    specs = [*evaluation_specs(photo_index, photo_index.subset(16), config, 16)]
    half = load(photo_index, specs, replace(config, half_input=True), setup.device)[0].images
    exact = load(photo_index, specs, config, setup.device)[0].images
    record.equal("dtype", str(half.dtype), "torch.float16")
    is_last = half.is_contiguous(memory_format=torch.channels_last)
    record.true("channels_last", is_last)
    # fp16 has 11 bits: values up to 2.7 are rounded by at most 0.001.
    record.at_most("largest difference", (half.float() - exact).abs().max().item(), 0.002)


def damaged_images(setup: Setup, record: Record) -> None:
    """A JPEG that is damaged after indexing: named, or left out, and how long that takes."""
    photo_index = _damaged_photos(setup)
    rows, damaged = np.arange(len(photo_index)), photo_index.id(1)
    for on_error in ("skip", "raise"):
        config = replace(data_config(setup), on_error=on_error)
        specs = evaluation_specs(photo_index, rows, config, len(rows))
        loader = Loader(
            photo_index, specs, config, setup.device, len(rows), decoding_threads(config)
        )
        begin, num_images, message = time.perf_counter(), 0, ""
        try:
            num_images = sum(len(batch.rows) for batch in loader)
        except UndecodableImages as error:
            message = str(error)
        record.note(f"{on_error}: seconds", time.perf_counter() - begin)
        if on_error == "skip":
            record.equal("skip: images", num_images, len(rows) - 1)
            record.equal("skip: left out", [photo_index.id(r) for r in loader.skipped], [damaged])
        else:
            record.true("raise: the image is named", damaged in message)


def _damaged_photos(setup: Setup) -> Index:
    """An index of five photos; after it was made, zeros replaced most of the second one, as after
    an interrupted copy. With a shorter file the loader would refuse the index instead."""
    folder = setup.folder / "damaged"
    for number, size in enumerate(SIZES):
        write_jpeg(folder / "class" / f"{number}.jpg", photo(size, number), "RGB", BASELINE)
    photo_index = index_of(folder)
    path = folder / "class" / "1.jpg"
    encoded = path.read_bytes()
    path.write_bytes(encoded[:NUM_KEPT].ljust(len(encoded), b"\0"))
    return photo_index
