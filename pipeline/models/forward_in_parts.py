"""Logits of a batch that is larger than the number of images that may be in the net at once."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.attack_view import AttackView
from pipeline.models.build import batch_norms


def part_size(net: nn.Module, num_images: int, at_once: int | None) -> int:
    """How many of N images go through the net in its present mode at a time: at most ``at_once``
    (None: no limit), but all if batch norm in training mode needs the whole batch."""
    if at_once is None or num_images <= at_once:
        return num_images
    return num_images if any(module.training for module in batch_norms(net)) else at_once


def logits_in_parts(view: AttackView, images: Tensor, size: int) -> Tensor:
    """Logits (N, K) of the net in its present mode, with a graph for the parameters.

    Several parts of ``size`` images are computed again in the backward pass, so that only one
    part's activations are in memory at a time.
    """
    if size >= len(images):
        return view.forward_current_mode(images)
    rows = torch.arange(len(images), device=images.device)
    parts = zip(images.split(size), rows.split(size), strict=True)
    logits = [
        checkpoint(view.forward_current_mode, part_images, part_rows, use_reentrant=False)
        for part_images, part_rows in parts
    ]
    return torch.cat(logits)
