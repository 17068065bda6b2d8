"""Dropout masks that are drawn once for each image and kept while it is attacked (the paper's NIN).

In: a seed and the number of images of a batch. Out: a mode in which every dropout layer in training
mode multiplies each image's activations by that image's mask, whichever batch the image is in.
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
    """The masks of N images, one for each dropout layer in the order of their calls.

    A layer's mask is drawn at its first call in training mode.
    """

    def __init__(self, seed: int, num_images: int) -> None:
        self.seed, self.num_images = seed, num_images
        self.drawn: dict[int, Tensor] = {}  # by layer, (N, ...) bool: the activations that are kept

    def factors(
        self, rows: Tensor, layer: int, activations: Tensor, p: float, whole_channels: bool
    ) -> Tensor:
        """Factors for some images' activations: 1 / (1 - p) or 0.

        Args:
            rows: (A,) int64, the images' positions among the N.
            layer: number of the dropout layer, from 0; those in evaluation mode count.
            activations: (A, ...).
            p: probability of dropping.
            whole_channels: drop whole channels.

        Returns:
            Of the shape of the activations, or (A, C, 1, ...) with ``whole_channels``.
        """
        if layer not in self.drawn:
            shape = (self.num_images, *activations.shape[1:])
            if whole_channels:
                shape = (*shape[:2], *(1,) * (len(shape) - 2))
            generator = torch.Generator(activations.device).manual_seed(self.seed + layer)
            uniform = torch.rand(shape, generator=generator, device=activations.device)
            self.drawn[layer] = uniform >= p
        scale = 1.0 / (1.0 - p) if p < 1 else 0.0
        return self.drawn[layer][rows].to(activations.dtype) * scale


class FixedDropout(TorchFunctionMode):
    """A mode for one forward of the images at ``rows``, with their masks."""

    def __init__(self, masks: DropoutMasks, rows: Tensor) -> None:
        super().__init__()
        self._masks, self._rows, self._num_calls = masks, rows, 0

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _WHOLE_CHANNELS:
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "input"}
        p, training = _probability_and_mode(*args[1:], **options)
        x = args[0] if args else kwargs["input"]
        # F.dropout in a module's own code is off in the attack and on in the cross-entropy's
        # forward. It counts in both, so that the layers after it keep their numbers.
        layer = self._num_calls
        self._num_calls += 1
        if not training:
            return x
        # Disables other TorchFunctionModes: they would take this product for one of two
        # activations, but with a constant the net stays piecewise linear.
        with torch._C.DisableTorchFunction():
            if len(x) != len(self._rows):
                raise UserError(
                    "model.attack_dropout: the input of a dropout layer of this net does not have "
                    "one row for each image, so that its masks cannot be kept; set it to false"
                )
            return x * self._masks.factors(self._rows, layer, x, p, _WHOLE_CHANNELS[func])


def _probability_and_mode(
    p: float = 0.5, training: bool = True, *_: bool, **_inplace: bool
) -> tuple[float, bool]:
    """(p, training) of a call of F.dropout or one of its variants, by position or name."""
    return p, training
