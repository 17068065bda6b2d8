"""Layers that are replaced because they have no second derivative."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

from pipeline.config import DataConfig, EvaluationConfig
from pipeline.evaluation.attack_space import attack_view_of
from pipeline.models.attack_view import AttackView
from pipeline.models.second_derivative import make_twice_differentiable
from pipeline.training.objective import make_objective
from tests.helpers.gradients import CONFIG, gradient_by, with_attack


def small_swin() -> nn.Module:
    """A Swin V2 whose windows of 4 x 4 do not divide feature maps of 6 x 6: they are padded."""
    torch.manual_seed(0)
    return SwinTransformer(
        *([4, 4], 8, [1, 2], [2, 2], [4, 4]),
        stochastic_depth_prob=0.0,
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    ).eval()


def derivatives(net: nn.Module, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    logits = net(images)
    return [logits, *torch.autograd.grad(logits.square().sum(), [images, *net.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_gradients_keep_their_bits(dtype: torch.dtype) -> None:
    plain, replaced = small_swin().to(dtype), small_swin().to(dtype)
    make_twice_differentiable(replaced)
    images = torch.randn(3, 3, 24, 24, dtype=dtype)
    both = zip(derivatives(plain, images), derivatives(replaced, images), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    assert list(plain.state_dict()) == list(replaced.state_dict())
    attentions = [m for m in replaced.modules() if isinstance(m, ShiftedWindowAttentionV2)]
    assert len(attentions) == 3


def test_the_unrolled_gradient_of_cosine_attention_by_finite_differences() -> None:
    net = small_swin().double()
    make_twice_differentiable(net)
    with torch.no_grad():  # biases of zero put a ReLU of the position biases at its kink
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    objective = make_objective(net, CONFIG)
    exact = gradient_by(net, images, labels, CONFIG)
    assert exact.isfinite().all()
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in net.parameters()]
    slope = torch.dot(exact, torch.cat([d.flatten() for d in direction])).item()
    start = [p.detach().clone() for p in net.parameters()]
    net.eval()
    values, step = [], 1e-7  # smaller than the distance to the next kink
    for sign in (1, -1):
        with torch.no_grad():
            for p, s, d in zip(net.parameters(), start, direction, strict=True):
                p.copy_(s + sign * step * d)
        values.append(objective(images, labels, use_methods=True).loss.item())
    measured = (values[0] - values[1]) / (2 * step)
    assert measured == pytest.approx(slope, rel=1e-6)


def test_normalisation_of_zero_and_tiny_vectors() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(x, dim=-1)

    net = nn.Sequential(type("WindowAttention", (Attention,), {})())  # as timm calls it
    make_twice_differentiable(net)
    for scale in (0.0, 1e-42, 1e-30, 1e-12, 1.0):
        x = (scale * torch.randn(4, 5)).requires_grad_()
        (first,) = torch.autograd.grad(net(x).square().mul(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert first.isfinite().all()
        assert second.isfinite().all()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(net, x)


class Attentions(TorchDispatchMode):
    """Counts calls of fused attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += "_flash_attention_for_cpu.default" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
def test_attention_is_fused_where_no_second_derivative_follows(kind: str) -> None:
    torch.manual_seed(0)
    net = VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).double().eval()
    nn.init.normal_(net.heads[0].weight)
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    with Attentions() as attentions:
        fused = gradient_by(net, images, labels, with_attack(kind))
    assert attentions.number >= 2 * 2  # the two layers, in the cross-entropy and in the attack
    with sdpa_kernel(SDPBackend.MATH), pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttackView, "with_fused_attention", lambda view: view)
        with Attentions() as attentions:
            plain = gradient_by(net, images, labels, with_attack(kind))
    assert attentions.number == 0
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-9)


def test_an_evaluation_uses_fused_attention() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).eval()
    view = attack_view_of(net, DataConfig(), EvaluationConfig(), torch.device("cpu"))
    with Attentions() as attentions:
        view(torch.randn(2, 3, 16, 16))
    assert attentions.number == 2
