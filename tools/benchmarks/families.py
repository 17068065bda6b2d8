"""What each family of nets costs, and whether the gradient of `unrolled` is exact for it."""

import argparse
import copy
import importlib.util
import math

import torch
from torch import Tensor, nn

from benchmarks.common import Row, device_of, layout_of, regularizers, training_pass
from benchmarks.counters import counted
from pipeline.config import ModelConfig, RegularizerConfig
from pipeline.errors import first_line
from pipeline.models import build, timm_nets
from pipeline.models.attack_view import AttackView
from pipeline.models.linear_region import why_not_piecewise_linear
from pipeline.training.memory_budget import peak_bytes
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
TOLERANCE = 1e-3  # of a slope in float64; a wrong term of the gradient changes it by percents
GRADIENTS = ("unrolled", "boundary", "one step")  # names of `regularizers`


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each net; FLOPs and memory of a step are relative to a plain step's (the
    cross-entropy's passes).

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
    draw_zero_heads(net)
    images = torch.randn(options.num_images or 2, 3, size, size, device=device)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)  # correct, so that every image is attacked
    operation = first_nonlinear_operation(net, images)
    configs = regularizers(options.max_images)
    plain_pass = training_pass(
        make_objective(net, configs["unrolled"]), images, labels, use_methods=False
    )
    plain = counted(plain_pass)[1]
    plain_bytes = peak_bytes(plain_pass, device)
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
            row[f"{gradient}, memory"] = peak_bytes(step, device) / plain_bytes
        except RuntimeError as error:  # an operation without a second derivative
            row[gradient] = first_line(error)
    error = finite_difference_error(net, images, labels, configs["unrolled"])
    row["error"] = error if error < TOLERANCE else f"FAIL: {error:.1g}"
    return row


def draw_zero_heads(net: nn.Module) -> None:
    """Draw weights that start at zero, as the last layer of torchvision's ViT does: with them no
    image has a gradient."""
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def finite_difference_error(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig
) -> float:
    """The relative error of the loss's slope along a random direction of the weights, in float64.

    The smallest for several lengths of the difference: a short one has rounding errors, and a long
    one passes kinks of the net.

    Args:
        net: in evaluation mode; it is copied.
        images: (N, C, H, W).
        labels: (N,) int64.
        config: the regulariser.
    """
    net, images = copy.deepcopy(net).double(), images.double()
    objective = make_objective(net, config)
    parameters = [p for p in net.parameters() if p.requires_grad]
    net.eval()
    objective(images, labels, use_methods=True).loss.backward()
    direction = [torch.randn_like(p) * p.std().nan_to_num() for p in parameters]
    pairs = zip(parameters, direction, strict=True)
    slope = sum((p.grad * d).sum().item() for p, d in pairs if p.grad is not None)
    start = [p.detach().clone() for p in parameters]

    def loss_at(length: float) -> float:
        with torch.no_grad():
            for p, s, d in zip(parameters, start, direction, strict=True):
                p.copy_(s + length * d)
        return objective(images, labels, use_methods=True).loss.item()

    measured = [(loss_at(h) - loss_at(-h)) / (2 * h) for h in (1e-4, 1e-5, 1e-6, 1e-7)]
    scale = max(map(abs, (slope, *measured)))
    if scale == 0:  # nothing was measured
        return math.inf
    return min(abs(value - slope) for value in measured) / scale


def first_nonlinear_operation(net: nn.Module, images: Tensor) -> str:
    """The first operation that is not known to be piecewise linear; empty if all are."""
    view, first = AttackView(net), torch.zeros(1, dtype=torch.int64, device=images.device)
    return why_not_piecewise_linear(lambda image: view(image, first), images[:1])
