"""Replacements for layers of known nets that have no second derivative in torch.

In: a net. Out: the same net, with the same weights; its logits and first derivatives are equal to
the last bit.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Cosine attention, of torchvision's and of timm's Swin V2. Windows at an image's edge are padded
# with zeros; their keys are zero vectors, where F.normalize's second derivative is NaN.
_COSINE_ATTENTION = ("ShiftedWindowAttentionV2", "WindowAttention")


def make_twice_differentiable(net: nn.Module) -> None:
    """Replace the layers that the unrolled attack cannot be differentiated through."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _Hardsigmoid())
        cls = type(module)
        if cls.__name__ in _COSINE_ATTENTION and not isinstance(module, _WithNormalize):
            module.__class__ = type(cls.__name__, (_WithNormalize, cls), {})


class _Hardsigmoid(nn.Module):
    """nn.Hardsigmoid by operations that have second derivatives in torch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class _WithNormalize(nn.Module):
    """Base of a layer whose calls of F.normalize are replaced."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _ReplaceNormalize():
            return super().forward(*args, **kwargs)


class _ReplaceNormalize(TorchFunctionMode):
    """Calls `_normalize` for F.normalize."""

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.normalize and kwargs.get("p") == 2.0 and kwargs.get("out") is None:
            return _normalize(*args, dim=kwargs["dim"], eps=kwargs["eps"])
        return func(*args, **kwargs)


def _normalize(x: Tensor, dim: int, eps: float) -> Tensor:
    """F.normalize in the Euclidean norm."""
    return x / _EuclideanNorm.apply(x, dim).clamp_min(eps).expand_as(x)


class _EuclideanNorm(torch.autograd.Function):
    """Norm along a dimension, which is kept. Its derivatives at zero vectors are 0.

    torch's second derivative is NaN there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        norm = x.norm(2.0, dim, keepdim=True)
        ctx.save_for_backward(x, norm)
        return norm

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        x, norm = ctx.saved_tensors
        # Below the smallest normal number 1 / norm is infinite.
        divisor = norm.where(norm > torch.finfo(norm.dtype).tiny, torch.inf)
        return gradient * (x / divisor), None
