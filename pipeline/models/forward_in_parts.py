"""Logits of a batch that is larger than the number of images that may be in the net at once."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.attack_view import AttackView
from pipeline.models.build import batch_norms


def must_split(net: nn.Module, images: Tensor, at_once: int | None) -> bool:
    """Whether images (N, C, H, W) are more than ``at_once`` (None: no limit) and can be split:
    batch norm in training mode needs the whole batch."""
    if at_once is None or len(images) <= at_once:
        return False
    return not any(module.training for module in batch_norms(net))


def logits_in_parts(view: AttackView, images: Tensor, at_once: int | None) -> Tensor:
    """Logits (N, K) of the net in its present mode, with a graph for the parameters.

    Where the batch must be split, each part is computed again in the backward pass, so that only
    one part's activations are in memory at a time.
    """
    if at_once is None or not must_split(view.net, images, at_once):
        return view.forward_current_mode(images)
    rows = torch.arange(len(images), device=images.device)
    parts = zip(images.split(at_once), rows.split(at_once), strict=True)
    logits = [
        checkpoint(view.forward_current_mode, part_images, part_rows, use_reentrant=False)
        for part_images, part_rows in parts
    ]
    return torch.cat(logits)
