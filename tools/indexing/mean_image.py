"""tools/index.py mean: the mean image of an index."""

import argparse
import shlex

import numpy as np

from indexing.common import progress_bar
from pipeline.config import DataConfig
from pipeline.data import index
from pipeline.errors import UserError
from pipeline.runtime.files import atomic_write, check_writable, writable

_BATCH_VALUES = 2**28  # numbers in a batch of images: 1 GiB


def preprocessing(options: argparse.Namespace) -> DataConfig:
    """Options for centre crops without normalisation; images that do not decode are left out."""
    return DataConfig(
        crop_size=options.crop,
        resize_size=options.resize,
        channels=options.channels,
        mean=[0.0] * options.channels,
        std=[1.0] * options.channels,
        on_error="skip",
    )


def write_mean(options: argparse.Namespace) -> None:
    """Compute the mean of an index's centre crops for --data.mean, with pixels in [0, 1]."""
    import torch  # torch and DALI take seconds to import, and other commands do not need them

    from pipeline.data import source
    from pipeline.data.batches import evaluation_specs
    from pipeline.data.loader import Loader

    if options.out.suffix != ".npy":
        raise UserError(f"--out {options.out}: a mean image is a .npy file; name it so")
    check_writable(options.out)
    if options.resize < options.crop:
        raise UserError(f"--resize {options.resize} must be at least --crop, {options.crop}")
    images = index.read(str(options.index), options.root, option="index")
    if images.is_array.any():
        raise UserError(f"{options.index} contains arrays; a mean image is made of images only")
    channels = options.channels
    data = preprocessing(options)
    total, done = torch.zeros((), dtype=torch.float64), 0
    size = min(250, max(1, _BATCH_VALUES // (channels * options.crop**2)))
    specs = evaluation_specs(images, np.arange(len(images)), data, size)
    loader = Loader(images, specs, data, torch.device("cpu"), size, source.decoding_threads(data))
    with progress_bar("mean", len(images), in_bytes=False) as progress:
        for batch in loader:
            total = total + batch.images.double().sum(dim=0)
            done += len(batch.rows)
            progress(done)
    if done == 0:
        raise UserError(f"{options.index}: none of its images decodes; check the archives")
    with writable(options.out), atomic_write(options.out) as partial, partial.open("wb") as file:
        np.save(file, (total / done).float().numpy())
    print(
        f"{options.out}: the mean of {done:,} images, {channels} x {options.crop} x {options.crop}"
    )
    print(
        f"use it: --data.mean {shlex.quote(str(options.out))} --data.crop_size {options.crop} "
        f"--data.resize_size {options.resize} --data.channels {channels}"
    )
