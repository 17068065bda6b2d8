"""What both entry points do first: the output folder, the indices, the net, the threads."""

import dataclasses
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from pipeline import lock, models
from pipeline.config import DataConfig, FinetuneConfig, RunConfig, RuntimeConfig
from pipeline.data import demo, index
from pipeline.data.index import Index
from pipeline.distributed import Ranks
from pipeline.errors import UserError
from pipeline.trial import check_net
from pipeline.weight_classes import check_indices, check_weights


def open_folder(config: RunConfig, ranks: Ranks, foreign: str, alone: bool = False) -> Path:
    """Make the output folder and see that it can be written.

    Args:
        config: names the folder.
        ranks: the first looks for all.
        foreign: a name in it that tells that it belongs to the other entry point.
        alone: keep other runs out of it until this one ends.

    Raises:
        UserError: it cannot be written, belongs to the other entry point, or to a run that goes.
    """
    folder = Path(config.output)
    if (folder / foreign).exists():
        raise UserError(f"output: {folder} holds another kind of run; give another --output")
    if ranks.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a name of its own: other shards try too
                pass
        except OSError as error:
            raise UserError(
                f"output: {folder} cannot be written ({error.strerror}); give another --output"
            ) from None
        if alone:
            lock.hold(folder)
    ranks.barrier()
    return folder


def open_index(config: RunConfig, part: str) -> Index:
    """The index of ``data.train`` or ``data.val``; the embedded digits for ``demo``.

    Raises:
        UserError: there is none, or its arrays cannot be evaluated in the space asked for.
    """
    path = getattr(config.data, part)
    root = config.data.root
    if path == demo.NAME:
        path, root = str(demo.prepare()[part]), None
    found = index.read(path, root, option=f"data.{part}")
    if part == "val" and found.arrays.any() and config.evaluation.space != "input":
        raise UserError(
            f"evaluation.space: the arrays of {path} are in the net's input space, where alone "
            "they can be evaluated: input"
        )
    return found


def num_classes_of(config: RunConfig, first: Index) -> int:
    """Outputs of the net: as many as asked for, or as the first index has classes."""
    asked = config.model.num_classes
    return first.num_classes if asked is None else asked


def build_net(config: RunConfig, *indices: Index) -> nn.Module:
    """The net with `num_classes` outputs.

    Raises:
        UserError: no such net, weights that do not fit, labels outside its classes, or a net that
            cannot be attacked; the indices or the weights are of different classes.
    """
    num_classes = num_classes_of(config, indices[0])
    if num_classes < 2:
        raise UserError(
            f"{indices[0].path} has one class, and a classifier needs two; set model.num_classes"
        )
    for each in indices:
        index.check_labels(each, num_classes)
    model = config.model
    if not isinstance(config, FinetuneConfig):  # evaluation measures the head that the weights have
        model = dataclasses.replace(model, new_head=False)
    for other in indices[1:]:
        check_indices(config, indices[0], other)
    if not model.new_head:
        check_weights(config, indices[0])
    net = models.build(model, num_classes)
    check_net(net, config, num_classes)
    return net


def memory_format(runtime: RuntimeConfig, device: torch.device) -> torch.memory_format:
    """Layout of the net's weights, which that of its input follows."""
    last = runtime.channels_last
    if last == "auto":
        last = device.type == "cpu" or runtime.precision != "fp32"
    return torch.channels_last if last else torch.preserve_format


def decoding_threads(config: DataConfig, local_size: int = 1) -> int:
    """DALI's threads for this rank: as asked for, or one more than its share of the cores, so that
    small operators of one batch do not wait for the decoder of another."""
    if config.threads is not None:
        return config.threads
    return max(1, cores() // local_size) + 1


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "deep-defense-pipeline")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # DALI has other names for other CUDA versions
            continue
    return found
