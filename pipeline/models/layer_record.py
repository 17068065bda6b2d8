"""Gradients by the parameters after the backward pass, with a weight for each sample.

In: a forward pass of A samples under `LayerRecord`, and one gradient of the samples' f by the
inputs. Out: gradients by the parameters of sum_s a_s f_s, for weights a (A,) that may be known only
then.

The gradient by a layer's weights is a product of the layer's input h and of e, the gradient by its
output. A gradient by the net's input computes all e on its way. The record keeps h and e, so that a
gradient by the parameters costs one product a layer, where autograd would compute all e again.

In a piecewise linear net the record also gives the gradient of <v, w>, with w the gradient of f by
the input: the product of e and of h's derivative along v. v enters as a forward-mode tangent of the
input (torch.autograd.forward_ad).

The net's own code runs under a torch function mode, which replaces convolutions, linear layers and
batch norm on stored statistics. A net that uses parameters elsewhere is not supported; whether one
does is found out once, by `is_recordable`.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pipeline.models.parameter_gradients import Gradients, UnscaledGradient, scaled_gradients
from pipeline.models.recorded_layers import LayerConstants, RecordedLayer, recorded_layer

_LARGEST_WEIGHT = 2.0**-10


@contextmanager
def tangents_allowed() -> Iterator[None]:
    """A block in which tensors may have tangents (torch.autograd.forward_ad)."""
    _load_tangents()
    with forward_ad.dual_level():
        yield


@cache
def _load_tangents() -> None:
    """Load what torch loads at the first tangent, without its warning about torch.jit."""
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        import_module("torch._decomp.decompositions_for_jvp")


class _Weights(NamedTuple):
    """Weights of A samples, divided by ``unit``, which brings them into fp16's range."""

    weight: Tensor  # (A,)
    tangent_weight: Tensor | None  # (A,)
    unit: Tensor  # scalar


class LayerRecord(TorchFunctionMode):
    """Runs a net once and records its layers."""

    def __init__(
        self, parameters: Sequence[Tensor], constants: LayerConstants | None = None
    ) -> None:
        """Record one forward pass, for gradients by these parameters.

        Args:
            parameters: to differentiate by.
            constants: shared by records between which no parameter or buffer changes.
        """
        super().__init__()
        self._constants = LayerConstants() if constants is None else constants
        self._position = {id(parameter): n for n, parameter in enumerate(parameters)}
        self._num_parameters = len(parameters)
        self._layers: dict[RecordedLayer, None] = {}  # in the order of the forward pass
        self._weights: _Weights | None = None
        # Without the unit of the weights; several of a parameter that several layers use.
        self._gradients: list[UnscaledGradient] = []

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer = recorded_layer(func, args, kwargs, self._constants)
        if layer is not None:
            # Frozen layers run in the same way: batch norm's own tangents take many operations.
            if any(id(parameter) in self._position for parameter in layer.parameters()):
                self._layers[layer] = None
            return _RunLayer.apply(layer.inputs, layer, self)
        return self.run_other(func, args, kwargs)

    def run_other(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run an operation that is not recorded."""
        return func(*args, **kwargs)

    def weigh(self, weight: Tensor, tangent_weight: Tensor | None = None) -> None:
        """Set the weights a of f and b of the tangents' terms, (A,) fp32 each; b after a pass with
        tangents only.

        Before the gradient by the inputs, if the weights are known there: then that pass multiplies
        layer by layer, and nothing is kept. Or after it. `weighted_gradients` comes last.
        """
        # fp16 has little range, and e is usually scaled up: the weights become small.
        weights = [w for w in (weight, tangent_weight) if w is not None]
        largest = torch.stack([w.abs().max() for w in weights]).max()
        unit = largest.where(largest > 0, 1.0) / _LARGEST_WEIGHT
        scaled = None if tangent_weight is None else tangent_weight / unit
        self._weights = _Weights(weight / unit, scaled, unit)

    def gradients(self, weight: Tensor, tangent_weight: Tensor | None = None) -> Gradients:
        """`weigh` and `weighted_gradients`."""
        self.weigh(weight, tangent_weight)
        return self.weighted_gradients()

    @torch.no_grad()
    def weighted_gradients(self) -> Gradients:
        """Gradients of sum_s (a_s f_s + b_s <v_s, w_s>) by the parameters; None for unused ones.

        Frees what was recorded.
        """
        while self._layers:
            layer, _ = self._layers.popitem()
            if layer.output_gradient is not None:  # otherwise f does not depend on it
                self._add(layer)
        return self._total()

    @torch.no_grad()
    def receive(self, layer: RecordedLayer, output_gradient: Tensor) -> None:
        """Take the gradient by a layer's output."""
        if layer not in self._layers:  # frozen, or a second gradient by the inputs
            return
        layer.output_gradient = output_gradient
        if self._weights is not None:
            del self._layers[layer]
            self._add(layer)
            layer.output_gradient = None  # the graph still refers to the layer

    def _add(self, layer: RecordedLayer) -> None:
        """Compute a layer's gradients by its parameters."""
        assert self._weights is not None
        weight, tangent_weight, _ = self._weights
        self._gradients += [
            gradient
            for gradient in layer.gradients(weight, tangent_weight)
            if id(gradient.parameter) in self._position
        ]

    def _total(self) -> Gradients:
        """The gradients by all parameters."""
        assert self._weights is not None
        scaled = scaled_gradients(self._gradients, self._weights.unit)
        total: Gradients = [None] * self._num_parameters
        for term, gradient in zip(self._gradients, scaled, strict=True):
            position = self._position[id(term.parameter)]
            before = total[position]
            total[position] = gradient if before is None else before.add_(gradient)
        self._gradients.clear()
        return total


class CheckedLayerRecord(LayerRecord):
    """Looks at every operation, which takes time: for the check of a net.

    Attributes:
        is_complete: whether all uses of the parameters so far are recorded.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self.is_complete = True

    def run_other(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run an operation, and see whether its result depends on a parameter."""
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(result)):
            arguments = tree_leaves((args, kwargs))
            self.is_complete &= not any(id(argument) in self._position for argument in arguments)
        return result

    def has_a_row_for_each(self, num_images: int) -> bool:
        """Whether the inputs of all layers have one row for each of A images."""
        return all(len(layer.inputs) == num_images for layer in self._layers)


def is_recordable(
    net: Callable[[Tensor], Tensor],
    images: Tensor,
    parameters: Sequence[Tensor],
    tolerance: float = 0.1,
) -> bool:
    """Whether a record gives the gradients that autograd gives, tried on some images (A, C, H, W).

    Args:
        net: from images to logits (A, K).
        images: to try it on.
        parameters: to differentiate by.
        tolerance: largest relative difference that counts as rounding. Samples or layers that are
            mixed up differ by as much as the gradient's size.
    """
    record = CheckedLayerRecord(parameters)
    images = images.detach().requires_grad_()
    weight = torch.linspace(1.0, -0.5, len(images), device=images.device)
    with torch.enable_grad(), record:
        logits = net(images)
    if not record.is_complete or not record.has_a_row_for_each(len(images)):
        return False
    signs = torch.ones_like(logits)
    signs[:, 1::2] = -1.0
    torch.autograd.grad(logits, images, signs)
    del logits  # and the graph
    with torch.enable_grad():
        loss = (weight[:, None] * signs * net(images)).sum()
    expected = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    pairs = [(a, b) for a, b in zip(record.gradients(weight), expected, strict=True)]
    differences = torch.stack([(b if a is None else b - a).double().norm() for a, b in pairs])
    sizes = torch.stack([b.double().norm() for _, b in pairs])
    return bool((differences <= tolerance * sizes + 1e-3 * sizes.norm()).all())


class _RunLayer(torch.autograd.Function):
    """The layer; backward records the gradient by its output."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: RecordedLayer, record: LayerRecord) -> Tensor:
        ctx.layer, ctx.record = layer, record
        layer.inputs = forward_ad.unpack_dual(inputs.detach()).primal
        return layer.outputs(layer.inputs)

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, tangent: Tensor, *_: None
    ) -> Tensor:
        ctx.layer.tangent = tangent.detach()  # other operations make a graph of tangents
        return ctx.layer.linear_part(ctx.layer.tangent)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, e: Tensor
    ) -> tuple[Tensor, None, None]:
        ctx.record.receive(ctx.layer, e)
        return ctx.layer.input_gradient(e), None, None
