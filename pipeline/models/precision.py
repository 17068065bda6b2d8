"""The precisions that a net can run in: fp32, and bf16 and fp16 by autocast."""

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def autocast(images: Tensor, precision: torch.dtype) -> torch.autocast:
    """An autocast block for the device of ``images``; without effect in fp32 and fp64."""
    reduced = precision in HALF_PRECISIONS
    return torch.autocast(images.device.type, precision if reduced else None, enabled=reduced)


def upcast(values: Tensor) -> Tensor:
    """The values in fp32, or in fp64 if they are fp64."""
    return values if values.dtype == torch.float64 else values.float()
