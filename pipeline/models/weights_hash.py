"""The identity of a net's weights, for manifests and checkpoints."""

import hashlib

import torch
from torch import nn


def weights_hash(net: nn.Module) -> str:
    """Short hash of a net's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
