"""Numbers of nets on the device, beside a reference: logits, perturbations and gradients.

The reference of a GPU is fp32 on the CPU. That of the CPU is fp64 on the CPU.
"""

import copy
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import regularizers
from gpu_checks.check import Record, Setup
from gpu_checks.nets import net_of
from gpu_checks.pixels import compared_images
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import RegularizerConfig
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS
from pipeline.regularizer.penalty import robustness

Gradient = Literal["unrolled", "boundary", "one_step"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)


class NetAndImages(NamedTuple):
    """A net in evaluation mode and images (N, C, H, W), on one device and in one precision."""

    net: nn.Module
    images: Tensor

    @property
    def view(self) -> AttackView:
        """The net as an attack sees it."""
        return AttackView(self.net)


# fp32 rounds to 6e-8. Sums of some thousand products in another order, in 20 to 50 layers, give a
# relative difference of 1e-6 to 1e-5 in the logits; Winograd's convolutions, which cuDNN may
# choose, a few times as much. With TF32 (1e-3 per product) this limit is exceeded.
LOGIT_LIMIT = 1e-4
# A step of DeepFool divides by the logit difference's gradient and repeats near the boundary, where
# logits cancel: 3.4e-4 was measured for one last bit (docs/reproducibility.md). Single images may
# take one iteration more, so the median is limited. Directions differ more than lengths do.
NORM_LIMIT, DIRECTION_LIMIT = 1e-3, 1e-2
# Gradients by weights go through those perturbations; max-pooling and ReLU may take other branches.
GRADIENT_COSINE, GRADIENT_NORM_LIMIT = 0.999, 0.02
# With half precision (8 or 11 bits) logits near the boundary keep few digits: the attack ends at
# another point. 0.993 was measured for one_step in bf16 (docs/performance.md); a lost scale or a
# wrong sign gives a cosine near 0. fp16 has eight times finer steps than bf16.
HALF_COSINES = {"bf16": 0.9, "fp16": 0.95}


def resnet18(setup: Setup, record: Record) -> None:
    """Logits, perturbations and the regulariser's gradients of ResNet-18, beside the reference."""
    _compare_net("resnet18", setup, record)


def vit_b_16(setup: Setup, record: Record) -> None:
    """The same of ViT-B/16; in the small form of a transformer with two layers."""
    _compare_net("vit_b_16", setup, record)


def squeezenet1_1(setup: Setup, record: Record) -> None:
    """The same of SqueezeNet 1.1."""
    _compare_net("squeezenet1_1", setup, record)


def _compare_net(name: str, setup: Setup, record: Record) -> None:
    net = net_of(name, setup.size.side, setup.size.small)
    images = compared_images(setup, setup.size.num_compared)
    reference = torch.float32 if setup.on_gpu else torch.float64
    expected = NetAndImages(copy.deepcopy(net).to(reference), images.to(reference))
    with torch.no_grad():
        labels = expected.view(expected.images).argmax(dim=1)
    measured = NetAndImages(net.to(setup.device), images.to(setup.device))
    compare_logits(record, measured, expected)
    _compare_perturbations(record, measured, expected)
    for gradient in GRADIENTS:
        one = regulariser_gradient(measured, labels.to(setup.device), gradient)
        two = regulariser_gradient(expected, labels, gradient)
        _compare_gradients(record, gradient, one, two, GRADIENT_COSINE)
        record.at_most(
            f"{gradient}: norm differs by",
            abs((one.norm() / two.norm()).item() - 1),
            GRADIENT_NORM_LIMIT,
        )


def half_precision(setup: Setup, record: Record) -> None:
    """The regulariser's gradient of ResNet-18 in bf16 and fp16, beside fp32 on the same device."""
    net = net_of("resnet18", setup.size.side, setup.size.small).to(setup.device)
    net = net.to(memory_format=torch.channels_last)
    subject = NetAndImages(net, compared_images(setup, setup.size.num_compared).to(setup.device))
    with torch.no_grad():
        labels = subject.view(subject.images).argmax(dim=1)
    expected = {g: regulariser_gradient(subject, labels, g) for g in GRADIENTS}
    for precision, limit in HALF_COSINES.items():
        for gradient in GRADIENTS:
            measured = regulariser_gradient(subject, labels, gradient, PRECISIONS[precision])
            name = f"{precision}, {gradient}"
            _compare_gradients(record, name, measured, expected[gradient], limit)


def regulariser_gradient(
    subject: NetAndImages,
    labels: Tensor,
    gradient: Gradient,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Gradient (P,) of the mean relative distance by all parameters, as fp64 on the CPU.

    The mean of the distances takes the place of exp(-c ratio), which may be zero for random nets.
    """
    view = subject.view.in_precision(precision)
    config = replace(_regulariser(), gradient=gradient)
    ratio = robustness(view, subject.images, labels, config).ratio.mean()
    gradients = torch.autograd.grad(ratio, view.parameters(), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None]).double().cpu()


def _regulariser() -> RegularizerConfig:
    """The paper's, without a limit on the images."""
    return regularizers(None)["unrolled"]


@torch.no_grad()
def compare_logits(record: Record, measured: NetAndImages, expected: NetAndImages) -> None:
    """Compare logits, relative to their spread: a common shift has no effect on classes."""
    logits = measured.view(measured.images).double().cpu()
    expected_logits = expected.view(expected.images).double()
    record.true("logits: finite", bool(logits.isfinite().all()))
    spread = (expected_logits - expected_logits.mean(dim=1, keepdim=True)).norm(dim=1)
    difference = ((logits - expected_logits).norm(dim=1) / spread).max().item()
    record.at_most("logits: largest relative difference", difference, LOGIT_LIMIT)


def _compare_perturbations(record: Record, measured: NetAndImages, expected: NetAndImages) -> None:
    attack = _regulariser().attack
    one = deepfool(measured.view, measured.images, attack)
    two = deepfool(expected.view, expected.images, attack)
    delta, expected_delta = one.delta.double().cpu(), two.delta.double()
    norm, expected_norm = per_sample_norm(delta), per_sample_norm(expected_delta)
    same = (one.iterations.cpu() == two.iterations).double().mean().item()
    record.note("perturbations: share with equal iterations", same)
    record.note("perturbations: mean iterations", two.iterations.double().mean().item())
    record.note("perturbations: share flipped", one.flipped.double().mean().item())
    of_norms = ((norm - expected_norm).abs() / expected_norm).median().item()
    record.at_most("perturbations: median difference of norms", of_norms, NORM_LIMIT)
    of_vectors = (per_sample_norm(delta - expected_delta) / expected_norm).median().item()
    record.at_most("perturbations: median difference of vectors", of_vectors, DIRECTION_LIMIT)


def _compare_gradients(
    record: Record, name: str, measured: Tensor, expected: Tensor, limit: float
) -> None:
    cosine = F.cosine_similarity(measured, expected, dim=0).item()
    record.at_least(f"{name}: cosine of gradients", cosine, limit)
