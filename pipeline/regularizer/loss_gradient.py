"""The cross-entropy's gradients by the parameters and by the images, from one backward pass.

In: a net, images and labels. Out: the mean cross-entropy with its gradient by the parameters, and
the gradient of the margin loss by the images, which an attack can follow.

The margin loss L is log sum exp of the other logits minus the label's. The cross-entropy is
log(1 + exp(L)), so its gradient by anything is sigmoid(L) times that of L. One backward pass of L
gives the gradients by the images and by the outputs of all layers, and `LayerRecord` multiplies the
latter with the weights sigmoid(L) / N and the layers' inputs: as many FLOPs as the backward pass of
the cross-entropy alone. The gradient of L, unlike that of the cross-entropy, does not vanish where
the net is sure.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.attacks.loss_step import margin_loss
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.models.parameter_gradients import Gradients, add_gradients, scale_gradients_
from pipeline.models.precision import upcast
from pipeline.models.recorded_layers import LayerConstants


class LossGradient(NamedTuple):
    """Where an attack along the gradient of the margin loss starts."""

    logits: Tensor  # (A, K) of the images, without a graph
    gradient: Tensor  # (A, C, H, W) of L by the images
    # Of the layers that were recorded for it; valid until parameters or buffers change.
    constants: LayerConstants | None = None

    def of_rows(self, rows: Tensor) -> "LossGradient":
        """Of some of the images (A,), in their order."""
        if len(rows) == len(self.logits):
            return self
        return self._replace(logits=self.logits[rows], gradient=self.gradient[rows])

    @classmethod
    def concatenate(cls, parts: "list[LossGradient]") -> "LossGradient":
        """Of consecutive parts of a batch."""
        if len(parts) == 1:
            return parts[0]
        logits = torch.cat([part.logits for part in parts])
        return cls(logits, torch.cat([part.gradient for part in parts]))


class CrossEntropyPass(NamedTuple):
    """One forward and backward pass of N images."""

    mean: Tensor  # scalar, the mean cross-entropy, differentiable by the parameters
    cross_entropy: Tensor  # (N,), without a graph
    start: LossGradient


def loss_gradient(
    view: AttackView,
    images: Tensor,
    labels: Tensor,
    points: PointsToLinearize | None = None,
    at_once: int | None = None,
) -> LossGradient:
    """The gradient of the margin loss by the images.

    Args:
        view: the net as an attack sees it.
        images: (N, C, H, W) fp32, without a graph.
        labels: (N,) int64.
        points: the images in a forward pass, if there is one; released.
        at_once: largest number of images in the net at a time. Default: all.
    """
    if points is not None:
        rows, forward = points.rows, points.release()
        return _differentiate(view, forward, _margin_loss(forward, labels, rows)).of_rows(rows)
    rows = torch.arange(len(images), device=images.device).split(at_once or len(images))
    parts = []
    for part in rows:
        forward = view.forward_with_grad(images[part], part)
        parts.append(_differentiate(view, forward, _margin_loss(forward, labels[part])))
        del forward  # and the graph, before the next is made
    return LossGradient.concatenate(parts)


def _margin_loss(forward: ForwardPass, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """L (A,), with a graph, of some rows of a forward pass; default: of all."""
    with torch.enable_grad():
        return margin_loss(forward.logits if rows is None else forward.logits[rows], labels)


def _differentiate(view: AttackView, forward: ForwardPass, loss: Tensor) -> LossGradient:
    """The gradient of L for all images of a forward pass."""
    return LossGradient(forward.logits.detach(), view.logit_diff_gradient(forward, loss))


def cross_entropy_pass(
    view: AttackView, images: Tensor, labels: Tensor, at_once: int | None = None
) -> CrossEntropyPass:
    """The mean cross-entropy and the gradient of the margin loss, by one pass.

    The gradient by the parameters is computed now, and handed out by the backward pass.

    Args:
        view: the net; its layers can be recorded (`AttackView.can_record_layers`).
        images: (N, C, H, W).
        labels: (N,) int64.
        at_once: largest number of images in the net at a time. Default: all.
    """
    images = upcast(images.detach())
    rows = torch.arange(len(images), device=images.device).split(at_once or len(images))
    total: Gradients = [None] * len(view.parameters())
    parts, constants = [], LayerConstants()
    for part in rows:
        record = view.record_layers(constants)
        with record:
            forward = view.forward_with_grad(images[part], part)
        loss = _margin_loss(forward, labels[part])
        record.weigh(loss.detach().sigmoid() / (len(images) * view.gradient_scale))
        parts.append(_differentiate(view, forward, loss))
        del forward, loss  # and the graph, before the next is made
        total = add_gradients(total, record.weighted_gradients())
    start = LossGradient.concatenate(parts)._replace(constants=constants)
    cross_entropy = F.cross_entropy(start.logits, labels, reduction="none")
    mean = _KnownGradient.apply(cross_entropy.mean(), total, *view.parameters())
    return CrossEntropyPass(mean, cross_entropy, start)


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient by the parameters is known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *_parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, adjoint: Tensor
    ) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient is handed out once, by the first backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scale_gradients_(gradients, adjoint)
        return None, None, *gradients
