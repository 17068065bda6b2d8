"""The preprocessing that a publisher of weights states for them."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PublishedPreprocessing:
    """How images become the input of a published net."""

    crop_size: int  # pixels
    crop_pct: float  # crop_size / resize_size
    interpolation: str  # a filter that data.interpolation need not have
    mean: list[float]  # of each channel, for pixel values in [0, 1]
    std: list[float]
    crop_mode: str = "center"  # timm's name; squash and border resize without a centre crop

    def data_options(self, crop_size: int | None = None) -> dict[str, Any]:
        """The options of the section data.

        Args:
            crop_size: another size than the published one; resize_size keeps its ratio to it.
        """
        size = self.crop_size if crop_size is None else crop_size
        return {
            "resize_size": math.floor(size / self.crop_pct + 1e-6),  # timm rounds down, too
            "crop_size": size,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }
