"""The net as an attack sees it.

In: a net and the precision it runs in. Out: `AttackView`, a per-sample function from images to
logits, with the gradients that an attack needs.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.models import linear_region
from pipeline.models.fixed_dropout import DROPOUT_LAYERS, DropoutMasks, FixedDropout
from pipeline.models.head import ClassLayer, last_class_layer
from pipeline.models.layer_record import LayerRecord, is_recordable
from pipeline.models.precision import HALF_PRECISIONS, autocast, upcast
from pipeline.models.recorded_layers import LayerConstants


class ForwardPass(NamedTuple):
    """Logits as a function of the inputs, with its graph."""

    inputs: Tensor  # (A, C, H, W), require grad
    logits: Tensor  # (A, K) fp32


class AttackView:
    """The net as a per-sample function in a stated precision.

    Batch norm uses its stored statistics. Dropout is off; with ``dropout`` each image of a batch
    keeps the masks of `draw_dropout_masks`, so that the net is one function while it is attacked
    and differentiated. Logits are fp32.

    Each forward has its own autocast block, unless it is in one of `cast_weights_once`. One block
    around forwards with and without a graph would reuse cast weights that have no graph.
    """

    def __init__(
        self,
        net: nn.Module,
        precision: torch.dtype = torch.float32,
        dropout: bool = False,
        bounds: tuple[float, float] | None = None,
        min_batch_size: int = 1,
    ) -> None:
        """Wrap a net.

        Args:
            net: from images to logits.
            precision: dtype of its forwards.
            dropout: keep dropout on, with fixed masks, after `draw_dropout_masks`.
            bounds: smallest and largest valid input value; perturbed images are clipped to them.
            min_batch_size: smaller batches are padded by repeating the last image; the padding is
                dropped from the result. Libraries use other kernels for small batches, whose last
                bits differ.
        """
        self.net = net
        self.bounds = bounds
        self.min_batch_size = min_batch_size
        self.precision = precision
        self.dropout = dropout
        self._dropout_seed = 0
        self._masks: DropoutMasks | None = None
        self.rows_in_batch: Tensor | None = None
        self._heads: dict[int, ClassLayer | None] = {}  # by number of classes, shared by copies
        self._channels_last = _is_channels_last(net)
        self.fused_attention = False
        self._checked: dict[str, bool] = {}  # results of checks of the net, shared by copies

    def seed_dropout(self, seed: int) -> None:
        """Set the seed of the masks that `draw_dropout_masks` draws next."""
        self._dropout_seed = seed

    def draw_dropout_masks(self, num_images: int) -> None:
        """Draw masks for the images of a new batch; does nothing without dropout."""
        self._masks = DropoutMasks(self._dropout_seed, num_images) if self.dropout else None

    def with_current_masks(self) -> "AttackView":
        """A view of the same net that keeps the present masks when new ones are drawn."""
        return copy.copy(self)

    def of_rows(self, rows: Tensor) -> "AttackView":
        """A view of the same net for some images (A,) of the batch: its rows count from 0 among
        them, and each image keeps the masks that it has in the batch."""
        view = copy.copy(self)
        view.rows_in_batch = rows
        return view

    def in_precision(self, precision: torch.dtype) -> "AttackView":
        """A view of the same net, with the present masks, in another precision."""
        view = copy.copy(self)
        view.precision = precision
        return view

    def with_fused_attention(self) -> "AttackView":
        """A view of the same net, with the present masks, that may use fused attention kernels.

        They are faster, and have no second derivative.
        """
        view = copy.copy(self)
        view.fused_attention = True
        return view

    def with_min_batch_size(self, min_batch_size: int) -> "AttackView":
        """A view of the same net that pads smaller batches to another size."""
        view = copy.copy(self)
        view.min_batch_size = min_batch_size
        return view

    def padded_size(self, num_images: int) -> int:
        """How many images the net gets for this many."""
        if num_images == 0 or self._masks is not None:
            return num_images
        return max(num_images, self.min_batch_size)

    def cast_weights_once(self, images: Tensor) -> torch.autocast:
        """A block in which all forwards share the weights that the first one has cast.

        Gradients by the parameters are complete only if that one has a graph.
        """
        return autocast(images, self.precision)

    def forward_with_grad(self, inputs: Tensor, rows: Tensor | None = None) -> ForwardPass:
        """Logits of inputs (A, C, H, W), with a graph for gradients by the inputs.

        ``rows`` as in `__call__`.
        """
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            return ForwardPass(inputs, self(inputs, rows))

    def logit_diff_gradient(
        self, forward: ForwardPass, logit_diff: Tensor, create_graph: bool = False
    ) -> Tensor:
        """Per-sample gradients (A, C, H, W) of logit differences (A,) by the inputs.

        Args:
            forward: the forward pass; its graph is kept, for further gradients.
            logit_diff: a function of its logits.
            create_graph: make the gradients differentiable.
        """
        scale = self.gradient_scale
        (gradient,) = torch.autograd.grad(
            logit_diff,
            forward.inputs,
            torch.full_like(logit_diff, scale),
            retain_graph=True,
            create_graph=create_graph,
        )
        return gradient if scale == 1.0 else gradient / scale

    def input_gradient(self, forward: ForwardPass, adjoint: Tensor) -> Tensor:
        """Per-sample gradients (A, C, H, W) of <adjoint, logits> by the inputs; adjoint (A, K).

        The graph is kept, for further gradients.
        """
        scale = self.gradient_scale
        scaled = adjoint if scale == 1.0 else adjoint * scale
        (gradient,) = torch.autograd.grad(forward.logits, forward.inputs, scaled, retain_graph=True)
        return gradient if scale == 1.0 else gradient / scale

    def class_weight_distances(self, source: Tensor, classes: Tensor, num_classes: int) -> Tensor:
        """Distances between the classes' rows in the last layer that has one for each class; ones
        for a net without such a layer.

        Roughly proportional to the norm of the logit difference's gradient, at no cost.

        Args:
            source: (A,) class of each sample.
            classes: (A, M) other classes.
            num_classes: number of the net's outputs.

        Returns:
            (A, M).
        """
        if num_classes not in self._heads:
            named = last_class_layer(self.net, num_classes)
            self._heads[num_classes] = named and named[1]
        head = self._heads[num_classes]
        if head is None:
            return torch.ones_like(classes, dtype=torch.float32)
        weight = head.weight.detach().flatten(1).float()
        return (weight[source][:, None] - weight[classes]).norm(dim=2)

    def is_piecewise_linear(self, images: Tensor) -> bool:
        """Whether the net is known to be piecewise linear; tried once, on one image."""
        if "piecewise_linear" not in self._checked:
            first = torch.zeros(1, dtype=torch.int64, device=images.device)
            self._checked["piecewise_linear"] = linear_region.is_piecewise_linear(
                lambda image: self(image, first), images[:1]
            )
        return self._checked["piecewise_linear"]

    def record_layers(self, constants: LayerConstants | None = None) -> LayerRecord:
        """A context for one forward pass; see `pipeline.models.layer_record`."""
        return LayerRecord(self.parameters(), constants)

    def can_record_layers(self, images: Tensor) -> bool:
        """Whether gradients by the parameters can be had from a `LayerRecord`.

        Tried once, on three images, against autograd.
        """
        check = f"layer_record {self.precision}"
        if check not in self._checked:
            trial = torch.cat([images[:1], 0.5 * images[:1], 0.25 * images[:1]])
            rows = torch.zeros(3, dtype=torch.int64, device=images.device)
            # In deep nets bf16 rounds by a tenth and more.
            tolerance = 0.5 if self.precision in HALF_PRECISIONS else 0.1
            self._checked[check] = self.min_batch_size == 1 and is_recordable(
                lambda points: self(points, rows), trial, self.parameters(), tolerance
            )
        return self._checked[check]

    @property
    def gradient_scale(self) -> float:
        """Factor on the inner gradient, which keeps fp16 gradients from underflowing."""
        return 1024.0 if self.precision == torch.float16 else 1.0

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (N, K) fp32 of images (N, C, H, W).

        Args:
            images: to be classified.
            rows: (N,) int64, which images of the batch they are, for their dropout masks. Default:
                all, in order.
        """
        num_images = images.shape[0]  # a recorded pattern would count a call of len()
        padded = self.padded_size(num_images)
        with self._eval_mode():
            if num_images < padded:
                padding = images[-1:].expand(padded - num_images, *images.shape[1:])
                return self.forward_current_mode(torch.cat([images, padding]))[:num_images]
            return self.forward_current_mode(images, rows)

    def forward_current_mode(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (N, K) fp32 of the net in its present mode: those that the cross-entropy is of.

        ``rows`` as in `__call__`.
        """
        with autocast(images, self.precision), self._with_dropout_masks(images, rows):
            return upcast(logits_of(self.net(self.to_net_memory_format(images))))

    def clip_(self, images: Tensor) -> Tensor:
        """Clip the images to ``bounds``, if there are any, in place; returns them."""
        return images if self.bounds is None else images.clamp_(*self.bounds)

    def to_net_memory_format(self, images: Tensor) -> Tensor:
        """The images in the memory format of the net's weights."""
        if images.dim() != 4 or not self._channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Evaluation mode, except for dropout while it has masks."""
        in_training = DROPOUT_LAYERS if self._masks is not None else ()
        switched = [m for m in self.net.modules() if m.training and not isinstance(m, in_training)]
        for module in switched:
            module.training = False
        try:
            with nullcontext() if self.fused_attention else sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            for module in switched:
                module.training = True

    def _with_dropout_masks(
        self, images: Tensor, rows: Tensor | None
    ) -> AbstractContextManager[Any]:
        if self._masks is None:
            return nullcontext()
        if rows is None:
            rows = torch.arange(images.shape[0], device=images.device)
        return FixedDropout(
            self._masks, rows if self.rows_in_batch is None else self.rows_in_batch[rows]
        )


def logits_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits, also of nets that return auxiliary outputs after them."""
    return output if isinstance(output, Tensor) else output[0]


def _is_channels_last(net: nn.Module) -> bool:
    last = torch.channels_last
    kernels = (p for p in net.parameters() if p.dim() == 4 and not p.is_contiguous())
    return any(kernel.is_contiguous(memory_format=last) for kernel in kernels)
