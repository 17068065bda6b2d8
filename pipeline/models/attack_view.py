"""The net as the attack sees it.

In: a net and the precision it runs in. Out: `AttackView`, a per-sample function from images to
logits, with the gradients that DeepFool asks for.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.models import linear_region
from pipeline.models.fixed_dropout import DROPOUT_LAYERS, DropoutMasks, FixedDropout


class ForwardPass(NamedTuple):
    """Logits (A, K) as a function of points (A, C, H, W) that require grad."""

    inputs: Tensor
    logits: Tensor


class AttackView:
    """The net as the attack sees it: a per-sample function in a stated precision.

    Batch norm runs on stored statistics and dropout is off (or, with ``dropout``, each image keeps
    the masks that `begin` stands for, so that the net remains one function while it is attacked and
    differentiated). Logits are fp32.

    Each forward has an autocast block of its own: a block that mixes forwards with and without
    a graph would reuse cast weights that have lost theirs.
    """

    def __init__(
        self,
        net: nn.Module,
        precision: torch.dtype = torch.float32,
        dropout: bool = False,
        bounds: tuple[float, float] | None = None,
        least: int = 1,
    ) -> None:
        """See the net so.

        Args:
            net: from images to logits.
            precision: of its forwards.
            dropout: leave it on, once `begin` was called.
            bounds: least and largest value of a valid input, to which perturbed images are cut.
            least: fewer images are filled up to so many by repeats, which the result is without:
                libraries choose another kernel for a small batch, whose last bits differ.
        """
        self.net = net
        self.bounds = bounds
        self.least = least
        self.precision = precision
        self.dropout, self.seed = dropout, 0
        self.masks: DropoutMasks | None = None
        self._head = _last_layer(net)
        self._channels_last = _is_channels_last(net)
        self._piecewise_linear: bool | None = None

    def draw_dropout_masks(self, number: int) -> None:
        """Draw masks for the images of another batch, by ``seed``; nothing without dropout."""
        self.masks = DropoutMasks(self.seed, number) if self.dropout else None

    def forward_with_grad(self, points: Tensor, rows: Tensor | None = None) -> "ForwardPass":
        """Logits of points (A, C, H, W) with a graph, to be differentiated by the points; ``rows``
        as of a call."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            return ForwardPass(points, self(points, rows))

    def logit_diff_gradient(
        self, graph: "ForwardPass", gaps: Tensor, create_graph: bool = False
    ) -> Tensor:
        """Per-sample gradients (A, C, H, W) of gaps (A,), which are functions of the graph.

        The graph stays, for further gradients.
        """
        scale = self.seed_scale
        seed = torch.full_like(gaps, scale)
        (gradient,) = torch.autograd.grad(
            gaps, graph.inputs, seed, retain_graph=True, create_graph=create_graph
        )
        return gradient if scale == 1.0 else gradient / scale

    def class_weight_distances(self, source: Tensor, choices: Tensor) -> Tensor:
        """Distances of the classes' weights in the last layer, (A, M); ones if none is found.

        Roughly proportional to the norm of the gap's gradient, at no cost.
        """
        if self._head is None:
            return torch.ones_like(choices, dtype=torch.float32)
        weight = self._head.weight.detach().flatten(1).float()
        return (weight[source][:, None] - weight[choices]).norm(dim=2)

    def is_piecewise_linear(self, images: Tensor) -> bool:
        """Whether the net is known to be piecewise linear; tried once, on one image."""
        if self._piecewise_linear is None:
            first = torch.zeros(1, dtype=torch.int64, device=images.device)
            self._piecewise_linear = linear_region.is_piecewise_linear(
                lambda image: self(image, first), images[:1]
            )
        return self._piecewise_linear

    @property
    def seed_scale(self) -> float:
        """Factor on the inner gradient's seed, which keeps fp16 gradients from underflowing."""
        return 1024.0 if self.precision == torch.float16 else 1.0

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (N, K) fp32 of images (N, C, H, W).

        Args:
            images: to be classified.
            rows: (N,) which images of the batch they are, for their dropout masks. Default: all.
        """
        number = images.shape[0]
        with self._eval_mode():
            if 0 < number < self.least and self.masks is None:
                repeats = images[-1:].expand(self.least - number, *images.shape[1:])
                return self.forward_current_mode(torch.cat([images, repeats]))[:number]
            return self.forward_current_mode(images, rows)

    def forward_current_mode(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (N, K) fp32 of the net in its present mode, for the cross-entropy it trains on;
        ``rows`` as of a call."""
        with autocast(images, self.precision), self._with_dropout_masks(images, rows):
            return upcast(logits_of(self.net(self.to_net_memory_format(images))))

    def clip_(self, images: Tensor) -> Tensor:
        """The images, cut to the valid range where there is one; in place."""
        return images if self.bounds is None else images.clamp_(*self.bounds)

    def to_net_memory_format(self, images: Tensor) -> Tensor:
        """The images in the memory format of the net's weights."""
        if images.dim() != 4 or not self._channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Evaluation mode, but for dropout where it is asked for."""
        keep = DROPOUT_LAYERS if self.masks is not None else ()
        held = [m for m in self.net.modules() if m.training and not isinstance(m, keep)]
        for module in held:
            module.training = False
        try:
            # The fused attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            for module in held:
                module.training = True

    def _with_dropout_masks(
        self, images: Tensor, rows: Tensor | None
    ) -> AbstractContextManager[Any]:
        if self.masks is None:
            return nullcontext()
        if rows is None:
            rows = torch.arange(images.shape[0], device=images.device)
        return FixedDropout(self.masks, rows)


def autocast(images: Tensor, precision: torch.dtype) -> torch.autocast:
    """An autocast block for the device of ``images``; inert in fp32 and fp64."""
    reduced = precision in (torch.bfloat16, torch.float16)
    return torch.autocast(images.device.type, precision if reduced else None, enabled=reduced)


def logits_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits of nets that return auxiliary outputs beside them."""
    return output if isinstance(output, Tensor) else output[0]


def upcast(values: Tensor) -> Tensor:
    """To fp32 from half precision; fp64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _is_channels_last(net: nn.Module) -> bool:
    last = torch.channels_last
    kernels = (p for p in net.parameters() if p.dim() == 4 and not p.is_contiguous())
    return any(kernel.is_contiguous(memory_format=last) for kernel in kernels)


def _last_layer(net: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """The last layer with a row of weights for each class, as far as the order of layers tells."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else None
