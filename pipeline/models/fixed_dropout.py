"""Dropout masks drawn once an image and held while it is attacked (the paper's NIN).

In: a seed and the number of images of a batch. Out: a mode under which every dropout layer that
trains multiplies each image's activations by that image's mask, in whatever batch it comes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import UserError

DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_WHOLE_CHANNELS: dict[Callable, bool] = {
    F.dropout: False,
    F.dropout1d: True,
    F.dropout2d: True,
    F.dropout3d: True,
}


class DropoutMasks:
    """The masks of N images, one for each dropout layer in the order in which they are called;
    drawn when a layer is first met."""

    def __init__(self, seed: int, number: int) -> None:
        self.seed, self.number = seed, number
        self.drawn: list[Tensor] = []  # (N, ...) bool, what is kept

    def part(self, rows: Tensor, call: int, like: Tensor, p: float, channels: bool) -> Tensor:
        """What some images' activations are multiplied by: 1 / (1 - p) or 0.

        Args:
            rows: (A,) int64, the images' positions among the N.
            call: which dropout layer, counted from 0.
            like: (A, ...) activations.
            p: probability of dropping.
            channels: drop whole channels.
        """
        if call == len(self.drawn):
            shape = (self.number, *like.shape[1:])
            if channels:
                shape = (*shape[:2], *(1,) * (len(shape) - 2))
            generator = torch.Generator(like.device).manual_seed(self.seed + call)
            self.drawn.append(torch.rand(shape, generator=generator, device=like.device) >= p)
        return self.drawn[call][rows].to(like.dtype) * (1.0 / (1.0 - p) if p < 1 else 0.0)


class FixedDropout(TorchFunctionMode):
    """One forward of images at ``rows``, with their masks."""

    def __init__(self, masks: DropoutMasks, rows: Tensor) -> None:
        super().__init__()
        self._masks, self._rows, self._calls = masks, rows, 0

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _WHOLE_CHANNELS:
            return func(*args, **kwargs)
        p, training = _options(*args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        x = args[0] if args else kwargs["input"]
        if not training:
            return x
        # Out of sight of other modes: a product with a constant leaves a net piecewise linear.
        with torch._C.DisableTorchFunction():
            if len(x) != len(self._rows):
                raise UserError(
                    "model.attack_dropout: a dropout layer of this net does not have an image a "
                    "row, so that masks cannot be held; set it to false"
                )
            whole = _WHOLE_CHANNELS[func]
            factor = self._masks.part(self._rows, self._calls, x, p, whole)
            self._calls += 1
            return x * factor


def _options(p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[float, bool]:
    """Of F.dropout and its kin, by position or name."""
    return p, training
