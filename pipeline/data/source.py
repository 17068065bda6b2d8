"""The index of a run, and the threads that decode its images."""

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
    root = config.data.root
    if path == demo.NAME:
        path, root = str(demo.prepare()[part]), None
    images = index.read(path, root, option=f"data.{part}")
    if part == "val" and images.is_array.any() and config.evaluation.space != "input":
        raise UserError(
            f"evaluation.space: the arrays of {path} are in the net's input space, and can be "
            "evaluated only there: input"
        )
    return images


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
