"""Reference images: the line from an image to one of another class crosses a boundary.

That gives an upper bound of the distance, and a start for a descent. In an evaluation they are a
few rows of the index, evenly spaced, whatever the shard: an image's bound does not depend on the
images that are evaluated with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attacks.norms import per_sample_norm
from pipeline.models.attack_view import AttackView

NUM_REFERENCES = 16


@dataclass(frozen=True)
class References:
    """R images and the classes that the net sees in them."""

    images: Tensor  # (R, C, H, W)
    classes: Tensor  # (R,) int64

    @classmethod
    @torch.no_grad()
    def of(cls, view: AttackView, batches: Sequence[Tensor]) -> "References":
        """Classify reference images, batches of (N, C, H, W); those with logits that are not finite
        are left out."""
        images, logits = torch.cat([*batches]), torch.cat([view(batch) for batch in batches])
        finite = logits.isfinite().all(dim=1)
        return cls(images[finite], logits.argmax(dim=1)[finite])

    def __len__(self) -> int:
        """R, the number of images."""
        return len(self.images)

    def nearest(self, images: Tensor, label: Tensor, p: float) -> Tensor:
        """The nearest reference of another class, (A,) int64; -1: there is none.

        Args:
            images: (A, C, H, W).
            label: (A,) classes of the images.
            p: norm of the distance.
        """
        smallest = torch.full_like(label, torch.inf, dtype=images.dtype)
        nearest = torch.full_like(label, -1)
        for number, (image, reference_class) in enumerate(
            zip(self.images, self.classes, strict=True)
        ):
            distance = per_sample_norm(images - image, p)
            nearer = (label != reference_class) & (distance < smallest)
            smallest = distance.where(nearer, smallest)
            nearest = torch.where(nearer, number, nearest)
        return nearest
