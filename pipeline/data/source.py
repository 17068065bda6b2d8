"""The index of a run, and the threads that decode its images."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.config import DataConfig, RunConfig
from pipeline.data import demo, index
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.runtime.machine import cores


def open_index(config: RunConfig, part: str) -> Index:
    """The index of ``data.train`` or ``data.val``; the digits of the package for ``demo``.

    Raises:
        UserError: the index cannot be read, or it has arrays and ``evaluation.space`` is not input.
    """
    path = getattr(config.data, part)
    is_demo = path == demo.NAME
    images = index.read(str(demo.prepare()[part]) if is_demo else path, option=f"data.{part}")
    if config.data.root is not None and not is_demo:
        images = replace(images, root=_moved_root(config, images, Path(config.data.root)))
    if part == "val" and images.is_array.any() and config.evaluation.space != "input":
        raise UserError(
            f"evaluation.space: the arrays of {path} are in the net's input space, and can be "
            "evaluated only there: input"
        )
    return images


def _moved_root(config: RunConfig, images: Index, root: Path) -> Path:
    """The folder of an index's images with ``data.root``: that folder, or one inside it where the
    indices of train and val have different folders, as DATA/train and DATA/val."""
    first = images.files[images.file[0]]
    if (root / first).exists():
        return root
    paths = [path for path in (config.data.train, config.data.val) if path != demo.NAME]
    common = os.path.commonpath([os.path.abspath(index.recorded_root(path)) for path in paths])
    nested = root / os.path.relpath(os.path.abspath(images.root), common)
    return nested if (nested / first).exists() else root


def check_decoder(config: DataConfig, device: torch.device) -> None:
    """Refuse ``data.decoder`` gpu where there is none.

    Raises:
        UserError: the run is on a CPU.
    """
    if config.decoder == "gpu" and device.type == "cpu":
        raise UserError(
            "data.decoder is gpu, but the run is on a CPU; use --data.decoder auto, or check why "
            "torch sees no GPU on this machine"
        )


def decoding_threads(config: DataConfig, num_sharing: int = 1) -> int:
    """DALI's threads for this rank: ``data.num_threads``, or one more than its share of the cores,
    which ``num_sharing`` ranks use.

    With the additional thread, small operators of one batch do not wait for the decoder of another
    batch.
    """
    if config.num_threads is not None:
        return config.num_threads
    return max(1, cores() // num_sharing) + 1
