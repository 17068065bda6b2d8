"""The nets of the checks, with random weights that are the same in each call."""

import torch
from torch import nn
from torchvision.models import VisionTransformer

from pipeline.config import ModelConfig
from pipeline.models import build
from pipeline.models.second_derivative import make_twice_differentiable

NUM_CLASSES = 1000
COMPARED = ("resnet18", "vit_b_16", "squeezenet1_1")


def tiny(num_classes: int) -> nn.Module:
    """A net that takes no time, for the small form; with batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def net_of(name: str, side: int, small: bool) -> nn.Module:
    """A net in evaluation mode on the CPU.

    torchvision sets the last layer of vision transformers to zero: all logits would be equal, and
    no gradient would reach the image. Here that layer is drawn as the other nets' last layers are.
    """
    torch.manual_seed(0)
    net = _small_transformer(side) if small and name == "vit_b_16" else _torchvision_net(name)
    if isinstance(net, VisionTransformer):
        nn.init.normal_(net.heads[-1].weight, std=0.05)  # pyright: ignore[reportArgumentType]
    return net.eval()


def _torchvision_net(name: str) -> nn.Module:
    return build.build(ModelConfig(name=name), NUM_CLASSES)


def _small_transformer(side: int) -> nn.Module:
    net = VisionTransformer(
        image_size=side, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    make_twice_differentiable(net)
    return net
