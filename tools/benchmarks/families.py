"""What each family of nets costs: how `unrolled` differentiates its steps, and FLOPs of a step."""

import argparse
import importlib.util

import torch
from torch import Tensor, nn

from benchmarks.common import Row, device_of, layout_of, regularizers, training_pass
from benchmarks.counters import counted
from pipeline.config import ModelConfig
from pipeline.errors import first_line
from pipeline.models import build, timm_nets
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import unknown_operation
from pipeline.training.objective import make_objective

NUM_CLASSES = 1000
SMALL, PUBLISHED = 64, 224  # pixels
NETS = {  # side of the images; torchvision's ViT and MaxViT are built for 224 pixels
    "resnet18": SMALL,
    "resnext50_32x4d": SMALL,
    "regnet_y_400mf": SMALL,
    "densenet121": SMALL,
    "mobilenet_v2": SMALL,
    "mobilenet_v3_small": SMALL,
    "efficientnet_b0": SMALL,
    "convnext_tiny": SMALL,
    "vit_b_32": PUBLISHED,
    "swin_t": SMALL,
    "maxvit_t": PUBLISHED,
    "timm:resnet18": SMALL,
    "timm:regnetx_002": SMALL,
    "timm:efficientnet_lite0": SMALL,
    "timm:convnext_atto": SMALL,
    "timm:vit_tiny_patch16_224": SMALL,
    "timm:swin_tiny_patch4_window7_224": SMALL,
}
GRADIENTS = ("unrolled", "boundary", "one step")  # names of `regularizers`


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each net; FLOPs of a step are in plain steps (the cross-entropy's passes).

    Weights are random. The nets of timm are left out where it is not installed.
    """
    has_timm = importlib.util.find_spec("timm") is not None
    names = [name for name in NETS if has_timm or not timm_nets.is_timm(name)]
    if not has_timm:
        print("timm is not installed: its nets are left out")
    return [measure(name, NETS[name], options) for name in names]


def measure(name: str, size: int, options: argparse.Namespace) -> Row:
    """The row of one net.

    Args:
        name: the net, as model.name.
        size: side of its images in pixels.
        options: the command line.
    """
    torch.manual_seed(0)
    device = device_of(options)
    net = build.build(ModelConfig(name=name), NUM_CLASSES, size).to(device)
    net = net.to(memory_format=layout_of(options)).eval()
    images = torch.randn(options.num_images or 2, 3, size, size, device=device)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)  # correct, so that every image is attacked
    operation = first_nonlinear_operation(net, images)
    configs = regularizers(options.max_images)
    plain_pass = training_pass(
        make_objective(net, configs["unrolled"]), images, labels, use_methods=False
    )
    plain = counted(plain_pass)[1]
    row: Row = {
        "name": name,
        "pixels": size,
        "gflops_plain": plain / 1e9,
        "unrolled_by": "second derivatives" if operation else "linear pieces",
        "first_nonlinear": operation,
    }
    for gradient in GRADIENTS:
        step = training_pass(
            make_objective(net, configs[gradient]), images, labels, use_methods=True
        )
        try:
            step()  # the first step also tries what the net supports
            row[gradient] = counted(step)[1] / plain
        except RuntimeError as error:  # an operation without a second derivative
            row[gradient] = first_line(error)
    return row


def first_nonlinear_operation(net: nn.Module, images: Tensor) -> str:
    """The first operation that is not known to be piecewise linear; empty if all are."""
    view, first = AttackView(net), torch.zeros(1, dtype=torch.int64, device=images.device)
    return unknown_operation(lambda image: view(image, first), images[:1])
