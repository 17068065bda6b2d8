"""The net as the attacks of other libraries take it: images in [0, 1], queries counted.

In: an attack view and a batch of images. Out: `CountingModel`, an nn.Module of images in [0, 1],
and the affine map between them and the view's inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.attack_view import AttackView

# The libraries treat an image whose gradient is shorter than 1e-12 as one without a gradient.
_NO_GRADIENT = 1e-11
# Half the width of the interval that stands for an unbounded space, at least, over the largest
# absolute value of the image. A pixel can move by as much as that value in each direction.
_MARGIN = 2.0


@dataclass(frozen=True)
class UnitRange:
    """The interval [low, low + width] of a view's inputs, mapped linearly to [0, 1]."""

    low: float
    width: float
    clips: bool  # whether the ends are bounds of the view, or only limits of the map

    @classmethod
    def of_bounds(cls, bounds: tuple[float, float]) -> "UnitRange":
        """The interval of a bounded view; for (0, 1), the map is the identity."""
        return cls(bounds[0], bounds[1] - bounds[0], clips=True)

    @classmethod
    def around_zero(cls, width: float) -> "UnitRange":
        """An interval of an unbounded view."""
        return cls(-width / 2, width, clips=False)

    def to_unit(self, inputs: Tensor) -> Tensor:
        """Inputs of the view to [0, 1]."""
        return ((inputs - self.low) / self.width).clamp(0.0, 1.0).float()

    def from_unit(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to inputs of the view."""
        return images * self.width + self.low


def unbounded_widths(images: Tensor) -> Tensor:
    """The widths (N,) of the intervals of images (N, C, H, W) in an unbounded space.

    The smallest power of two that is at least 4 times the largest absolute value of the image. It
    is wide enough for perturbations that one would call small, and narrow enough for step sizes of
    attacks made for pixels in [0, 1]: a normalised photo's values take a quarter to a half of the
    interval, so lengths are two to four times shorter than in pixels. It depends on nothing but the
    image. Products with a power of two are exact.
    """
    largest = images.abs().flatten(1).amax(dim=1)
    largest = torch.where(largest > 0, largest, 1.0)
    return torch.exp2((2 * _MARGIN * largest).log2().ceil())


class CountingModel(nn.Module):
    """Logits of images in [0, 1]. Counts the forward passes and gradients of each image.

    A forward pass of the whole batch is one of every image. Some attacks leave finished images out;
    then each image is taken for the one of the batch that it is nearest to. So images of a batch
    that are equal share their counts.
    """

    def __init__(
        self, view: AttackView, unit_range: UnitRange, images: Tensor, every_gradient: bool
    ) -> None:
        """Wrap a view for one batch.

        Args:
            view: the net. No submodule, so that a library changes neither mode nor device.
            unit_range: the map from [0, 1] to the view's inputs.
            images: (N, C, H, W) in [0, 1], the batch that is attacked.
            every_gradient: count a gradient for every image of a backward pass. Otherwise only for
                those on whose logits the loss depends, so that images which an attack has left out
                by then are not counted.
        """
        super().__init__()
        self.eval()
        self._view, self._unit_range, self._every_gradient = view, unit_range, every_gradient
        self._images = images.flatten(1)
        count = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.num_forwards, self.num_gradients = count, count.clone()  # (N,)
        self.lost_gradient = torch.zeros_like(count, dtype=torch.bool)
        """(N,) whether a gradient of the image vanished."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (M, K) of images (M, C, H, W) in [0, 1], in fp32."""
        rows = self._rows(images.detach())
        self.num_forwards.index_add_(0, rows, torch.ones_like(rows))
        inputs = self._unit_range.from_unit(images)
        logits = self._view(inputs).float()
        if logits.requires_grad:
            inputs.register_hook(lambda gradient: self._look_for_zeros(rows, gradient))
            logits.register_hook(lambda gradient: self._count_gradients(rows, gradient))
        return logits

    def _rows(self, images: Tensor) -> Tensor:
        """(M,) the image of the batch that each image is."""
        if len(images) == len(self._images):
            return torch.arange(len(images), device=images.device)
        if len(self._images) == 1:
            return torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return torch.cdist(images.flatten(1), self._images).argmin(dim=1)

    def _count_gradients(self, rows: Tensor, gradient: Tensor) -> None:
        counted = (gradient != 0).any(dim=1) | self._every_gradient
        self.num_gradients.index_add_(0, rows, counted.long())

    def _look_for_zeros(self, rows: Tensor, gradient: Tensor) -> None:
        length = gradient.flatten(1).norm(dim=1) * self._unit_range.width
        self.lost_gradient[rows] |= ~(length > _NO_GRADIENT)
