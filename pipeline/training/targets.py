"""The classes that the images of a batch count as: `objective.targets`."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig
from pipeline.data.loader import Batch
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS
from pipeline.runtime.importing import describe_exception

Targets = Callable[[Batch], Tensor]  # (B,) int64, on the device of the images


def make_targets(net: nn.Module, config: FinetuneConfig) -> Targets:
    """What gives a batch's classes.

    Args:
        net: the net with the weights that a run starts from; with targets reference it is copied.
        config: the options of the run.
    """
    if config.objective.targets == "labels":
        return lambda batch: batch.labels
    return ReferenceTargets(net, PRECISIONS[config.runtime.precision])


class ReferenceTargets:
    """The classes that a fixed copy of the net predicts, in evaluation mode."""

    def __init__(self, net: nn.Module, precision: torch.dtype) -> None:
        try:
            fixed = copy.deepcopy(net)
        except Exception as error:  # a net's own code decides whether it can be copied
            raise UserError(
                "objective.targets reference: the net cannot be copied (copy.deepcopy): "
                f"{describe_exception(error)}; with torch.nn.utils.weight_norm use "
                "torch.nn.utils.parametrizations.weight_norm instead"
            ) from None
        self._view = AttackView(fixed.requires_grad_(requires_grad=False), precision)

    def __call__(self, batch: Batch) -> Tensor:
        """The predicted classes (B,) of a batch."""
        with torch.no_grad():
            return self._view(batch.images).argmax(dim=1)
