"""Options of the network."""

from dataclasses import dataclass

from .checks import Range, Section, number


@dataclass(kw_only=True)
class ModelConfig(Section):
    """The network."""

    name: str = "resnet18"
    """A torchvision classifier (resnet18, alexnet, squeezenet1_1, ...); a net of the paper (mlp,
    lenet, convnet, nin, caffe_alexnet); a net of timm as timm:NAME (timm:convnext_atto.d2_in1k), if
    timm is installed; or your own net as package.module:callable, which is called with
    num_classes=N if it takes this argument. The working folder is searched first."""
    weights: str | None = None
    """A .pth or .safetensors file, a checkpoint or weights.pth of a run, the name of weights of
    torchvision, which are downloaded (DEFAULT, IMAGENET1K_V1), or pretrained: the weights that timm
    publishes for a net timm:NAME, downloaded. Default: random weights."""
    init_std: float | None = number(None, Range(above=0))
    """Random weights are drawn from a normal distribution with this standard deviation, and biases
    are 0, as in Caffe and MatConvNet. Default: each layer's own initialisation."""
    new_head: bool = False
    """Fine-tuning for other classes than those of the weights: the last layer, which has a row for
    each class, is initialised randomly (by train.seed); only the other weights are loaded.
    Evaluation loads all weights."""
    num_classes: int | None = number(None, Range(minimum=2, unit="classes"))
    """Number of classes of the net. Default: that of the index."""
    freeze_batch_norm: bool = True
    """Batch norm uses its stored statistics and its parameters are not trained, as in the paper."""
    attack_dropout: bool = False
    """Keep dropout on during the attack, as for the paper's NIN. Masks are drawn once for each
    image and stay the same in its cross-entropy and its attack."""
