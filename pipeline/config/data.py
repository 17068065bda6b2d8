"""Options of the images, and of how they become the network's input."""

from dataclasses import dataclass
from typing import Literal

from .checks import Range, Section, number, require

_SIDE = Range(minimum=1, maximum=4096, unit="pixels")


@dataclass(kw_only=True)
class DataConfig(Section):
    """Where the images are and how they become the network's input."""

    train: str = "demo"
    """Index (.parquet, made by tools/index.py) of the training images, or demo: embedded digits."""
    val: str = "demo"
    """Index (.parquet) of the images to evaluate on, or demo: embedded held-out digits."""
    root: str | None = None
    """Folder that holds the archives or images named in the indices, if they have been moved.
    Default: the folder recorded in each index."""
    check_classes: bool = True
    """Refuse data whose classes differ from those of the weights, and training and evaluation
    images of different classes. false: warn only."""
    preprocessing: Literal["options", "auto"] = "options"
    """options: mean, std, crop_size, resize_size and interpolation have the values given here or
    their defaults. auto: those set neither in a YAML file nor on the command line are the ones that
    the weights were trained with, as stated by timm for its nets, or by torchvision for weights by
    name; config.yaml of the run has the values. If crop_size is set, resize_size keeps its ratio to
    it."""
    crop_size: int = number(224, _SIDE)
    """Side of the square input of the network, in pixels."""
    resize_size: int = number(256, _SIDE)
    """Evaluation: the shorter side of an image is resized to this many pixels, then the centre
    square of crop_size is taken."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter for resizing, with antialiasing. The names are those of torchvision's weights."""
    channels: Literal[1, 3] = 3
    """Channels of the input: 3 (RGB) or 1 (grey)."""
    mean: list[float] | str = number([0.485, 0.456, 0.406], Range(minimum=0, maximum=1))
    """Mean that is subtracted from each channel, for pixel values in [0, 1]. Or a mean image (.npy,
    made by tools/index.py mean), which is subtracted before the flip."""
    std: list[float] = number([0.229, 0.224, 0.225], Range(above=0))
    """Standard deviation by which each channel is divided, for pixel values in [0, 1]."""
    random_crop: bool = True
    """Train on random resized crops. false: train on the centre crop, as in evaluation."""
    crop_scale: list[float] = number([0.08, 1.0], Range(above=0, maximum=1))
    """Random crops: smallest and largest fraction of the image's area, as torchvision's scale."""
    crop_ratio: list[float] = number([3 / 4, 4 / 3], Range(above=0))
    """Random crops: smallest and largest width / height, as torchvision's ratio."""
    hflip: bool = True
    """Training: mirror each image left to right with probability 1/2."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do if an image cannot be decoded. raise: stop and name it; skip: count it, and
    continue without it."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """What decodes, resizes and normalises images. auto: the GPU if the run is on one, else the
    CPU. cpu: the CPU; a run on a GPU then gets the same pixels as a run on a CPU. gpu: the GPU; a
    run on a CPU is refused. The two decode JPEGs to slightly different pixels."""
    hw_decoder_load: float = number(0.65, Range(minimum=0, maximum=1))
    """Share of the JPEGs, 0 to 1, that the GPU's hardware decoder takes; the others are decoded by
    kernels on the GPU. For decoding on a GPU that has such a unit (A100, H100)."""
    num_threads: int | None = number(None, Range(minimum=1, maximum=1024, unit="threads"))
    """Threads of each rank that decode images. Default: the rank's share of the machine's cores,
    plus one."""
    prefetch: int = number(3, Range(minimum=1, maximum=1024, unit="batches"))
    """Number of batches that are decoded ahead of their use."""
    half_input: bool = False
    """On a GPU, pass half-precision channels_last images to the net. This halves the memory
    traffic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Names of the options that the user has set; `pipeline.config.parse` fills it in. No field:
        # it is neither an option nor stored.
        self.explicit: frozenset[str] = frozenset()

    def decoder_on(self, device_type: str) -> Literal["cpu", "gpu"]:
        """What decodes images in a run on this type of device, cpu or cuda."""
        if self.decoder == "auto":
            return "gpu" if device_type == "cuda" else "cpu"
        return self.decoder

    def check(self) -> None:
        """Check the number of values in lists, and their order."""
        rule = "1 number" if self.channels == 1 else f"{self.channels} numbers, one a channel"
        if isinstance(self.mean, str):  # the file is read where the mean is used
            is_npy = self.mean.endswith(".npy")
            require(is_npy, "mean", f"{rule}, or a .npy file", self.mean)
        else:
            require(len(self.mean) == self.channels, "mean", rule, self.mean)
        require(len(self.std) == self.channels, "std", rule, self.std)
        # With auto, one of the two may still be a default that the weights' value replaces.
        require(
            self.preprocessing == "auto" or self.resize_size >= self.crop_size,
            "resize_size",
            f"at least crop_size ({self.crop_size})",
            self.resize_size,
        )
        ordered = len(self.crop_scale) == 2 and self.crop_scale[0] <= self.crop_scale[1]
        require(ordered, "crop_scale", "two numbers, 0 < least <= largest <= 1", self.crop_scale)
        ordered = len(self.crop_ratio) == 2 and self.crop_ratio[0] <= self.crop_ratio[1]
        require(ordered, "crop_ratio", "two numbers, 0 < least <= largest", self.crop_ratio)
