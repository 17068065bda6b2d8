"""The net of a run: built, and checked against its indices and weights."""

from dataclasses import replace

import torch
from torch import nn

from pipeline.config import FinetuneConfig, RunConfig, RuntimeConfig
from pipeline.data import index
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.trial import check_net
from pipeline.models.weight_classes import check_indices, check_weights
from pipeline.runtime.reproducibility import use_reproducible_kernels


def num_classes_of(config: RunConfig, first: Index) -> int:
    """Number of outputs of the net: ``model.num_classes``, or the number of the index's classes."""
    configured = config.model.num_classes
    return first.num_classes if configured is None else configured


def labelled_indices(config: FinetuneConfig, train: Index, val: Index) -> tuple[Index, ...]:
    """The indices whose labels are outputs of the net; the first has its classes."""
    return (val,) if config.objective.targets == "reference" else (train, val)


def build_net(config: RunConfig, *indices: Index) -> nn.Module:
    """The net with `num_classes` outputs.

    Raises:
        UserError: no such net, weights that do not fit, labels outside its classes, or a net that
            cannot be attacked; the indices or the weights are of different classes.
    """
    use_reproducible_kernels()  # for launchers, whose --cluster debug runs a job in this process
    num_classes = num_classes_of(config, indices[0])
    if num_classes < 2:
        raise UserError(
            f"{indices[0].path} has one class, and a classifier needs two; set model.num_classes"
        )
    for labelled in indices:
        index.check_labels(labelled, num_classes)
    model = config.model
    if not isinstance(config, FinetuneConfig):  # evaluation measures the head that the weights have
        model = replace(model, new_head=False)
    for other in indices[1:]:
        check_indices(config, indices[0], other)
    if not model.new_head:
        check_weights(config, indices[0])
    net = build.build(model, num_classes, config.data.crop_size)
    check_net(net, config, num_classes)
    return net


def move_net(net: nn.Module, runtime: RuntimeConfig, device: torch.device) -> nn.Module:
    """The net on a device, its weights in the memory format of `memory_format`."""
    return net.to(device).to(memory_format=memory_format(runtime, device))


def memory_format(runtime: RuntimeConfig, device: torch.device) -> torch.memory_format:
    """Layout of the net's weights, which that of its input follows."""
    last = runtime.channels_last
    if last == "auto":
        last = device.type == "cpu" or runtime.precision != "fp32"
    return torch.channels_last if last else torch.preserve_format
