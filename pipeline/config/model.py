"""Options of the network."""

from dataclasses import dataclass

from .checks import Range, Section, number


@dataclass(kw_only=True)
class ModelConfig(Section):
    """The network."""

    name: str = "resnet18"
    """A torchvision classifier (resnet18, alexnet, squeezenet1_1, ...), mlp, lenet, convnet, nin or
    caffe_alexnet (the paper's), or your own as package.module:callable (given num_classes=N if it
    takes it), found in the working folder first."""
    weights: str | None = None
    """A .pth or .safetensors file, a checkpoint or weights.pth of a run, or the name of
    torchvision's weights (DEFAULT, IMAGENET1K_V1), which downloads. Default: a random start."""
    init_std: float | None = number(None, Range(above=0))
    """A random start draws weights from a normal distribution with this standard deviation, biases
    0, as Caffe and MatConvNet do. Default: as the net's layers draw them."""
    new_head: bool = False
    """Fine-tuning: the last layer, which has a row for each class, starts anew (from train.seed)
    and only the other weights are loaded: for classes other than those of the weights. Evaluation
    loads all weights."""
    num_classes: int | None = number(None, Range(minimum=2, unit="classes"))
    """Number of classes of the net. Default: that of the index."""
    freeze_batch_norm: bool = True
    """Batch norm runs on its stored statistics and its parameters do not train, as in the paper."""
    attack_dropout: bool = False
    """Leave dropout on inside the attack: masks are drawn once an image and held through its
    cross-entropy and its attack, as for the paper's NIN. Its other nets: off."""
