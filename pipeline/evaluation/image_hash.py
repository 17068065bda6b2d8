"""A hash of a decoded image, to see whether two machines decoded the same pixels."""

import torch
from torch import Tensor

_HASH_BITS = 52  # float64 holds such integers exactly


def hash_images(images: Tensor) -> Tensor:
    """A hash (A,) int64 of each image (A, C, H, W), below 2^52, equal on every device.

    The sum of the values' fp32 bits times odd numbers, modulo 2^64.
    """
    bits = images.float().contiguous().flatten(1).view(torch.int32).long()
    position = torch.arange(bits.shape[1], device=images.device)
    factors = (position * 0x5851F42D4C957F2D + 0x14057B7EF767814F) | 1
    return ((bits * factors).sum(dim=1) >> 12) & ((1 << _HASH_BITS) - 1)
