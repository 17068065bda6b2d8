"""Options of the images, and of how they become the network's input."""

from dataclasses import dataclass
from typing import Literal

from .checks import Range, Section, number, require

_SIDE = Range(minimum=1, maximum=4096, unit="pixels")


@dataclass(kw_only=True)
class DataConfig(Section):
    """Where the images are and how they become the network's input."""

    train: str = "demo"
    """Index (.parquet, from tools/index.py) of the training images, or demo: embedded digits."""
    val: str = "demo"
    """Index (.parquet) of the images to evaluate on, or demo: embedded held-out digits."""
    root: str | None = None
    """Folder that holds the archives or images named in the indices, if they have been moved.
    Default: the folder recorded in each index."""
    check_classes: bool = True
    """Refuse data of other classes than the weights', and training and evaluation images of
    different classes. false: warn only."""
    crop_size: int = number(224, _SIDE)
    """Side of the square input of the network, in pixels."""
    resize_size: int = number(256, _SIDE)
    """Evaluation: the shorter side of an image is resized to this many pixels, then the centre
    square of crop_size is taken."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of the resize, with antialiasing, as torchvision's weights name it."""
    channels: Literal[1, 3] = 3
    """Channels of the input: 3 (RGB) or 1 (grey)."""
    mean: list[float] | str = number([0.485, 0.456, 0.406], Range(minimum=0, maximum=1))
    """Subtracted from each channel, in units of pixel values in [0, 1]; or a mean image (.npy, from
    tools/index.py mean), subtracted before the flip."""
    std: list[float] = number([0.229, 0.224, 0.225], Range(above=0))
    """Divides each channel after the mean; in units of pixel values in [0, 1]."""
    random_crop: bool = True
    """Train on random resized crops; otherwise on the centre crop of evaluation."""
    crop_scale: list[float] = number([0.08, 1.0], Range(above=0, maximum=1))
    """Random crops: smallest and largest fraction of the image's area, as torchvision's scale."""
    crop_ratio: list[float] = number([3 / 4, 4 / 3], Range(above=0))
    """Random crops: smallest and largest width / height, as torchvision's ratio."""
    hflip: bool = True
    """Training: mirror each image left to right with probability 1/2."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image that does not decode: stop and name it, or count it and go on without it."""
    num_threads: int | None = number(None, Range(minimum=1, maximum=1024, unit="threads"))
    """Threads of each rank that decode images. Default: the rank's share of the machine's cores,
    plus one."""
    prefetch: int = number(3, Range(minimum=1, maximum=1024, unit="batches"))
    """Batches decoded ahead of the step."""
    half_input: bool = False
    """On a GPU hand the net half-precision channels_last input (half the memory traffic)."""

    def check(self) -> None:
        """Lists have as many numbers as they must, in order."""
        rule = "1 number" if self.channels == 1 else f"{self.channels} numbers, one a channel"
        if isinstance(self.mean, str):  # its image is looked at where it is used
            is_npy = self.mean.endswith(".npy")
            require(is_npy, "mean", f"{rule}, or a .npy file", self.mean)
        else:
            require(len(self.mean) == self.channels, "mean", rule, self.mean)
        require(len(self.std) == self.channels, "std", rule, self.std)
        require(
            self.resize_size >= self.crop_size,
            "resize_size",
            f"at least crop_size ({self.crop_size})",
            self.resize_size,
        )
        ordered = len(self.crop_scale) == 2 and self.crop_scale[0] <= self.crop_scale[1]
        require(ordered, "crop_scale", "two numbers, 0 < least <= largest <= 1", self.crop_scale)
        ordered = len(self.crop_ratio) == 2 and self.crop_ratio[0] <= self.crop_ratio[1]
        require(ordered, "crop_ratio", "two numbers, 0 < least <= largest", self.crop_ratio)
