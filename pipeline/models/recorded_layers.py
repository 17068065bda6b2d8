"""Layers that are affine in their input, with what a gradient by their parameters needs.

In: a call of a convolution, a linear layer, or batch norm on stored statistics. Out:
`RecordedLayer`, which `pipeline.models.layer_record` runs.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.models.parameter_gradients import UnscaledGradient

_LINEAR: dict[str, Any] = {"input": None, "weight": None, "bias": None}
_CONVOLUTION = {**_LINEAR, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_STATISTICS: dict[str, Any] = {"input": None, "running_mean": None, "running_var": None}
_BATCH_NORM = {
    **_STATISTICS,
    **{"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
}
# The parameters of each function, in order, with their defaults.
_PARAMETERS: dict[Callable, dict[str, Any]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    F.linear: _LINEAR,
    F.batch_norm: _BATCH_NORM,
}


class LayerConstants:
    """What layers compute from their parameters and buffers alone, for passes between which these
    do not change. Values of tensors that the net makes anew in each pass are freed with them."""

    def __init__(self) -> None:
        # By source; then by key: ``other`` and the value.
        self._values: MutableMapping[Tensor, dict[tuple[object, ...], tuple[Tensor | None, Any]]]
        self._values = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def get(
        self, source: Tensor, other: Tensor | None, compute: Callable[[], Any], *key: object
    ) -> Any:
        """What ``compute`` returned first for these tensors and this ``key``."""
        values = self._values.setdefault(source, {})
        if key not in values or values[key][0] is not other:
            values[key] = (other, compute())
        return values[key][1]

    def kernel(self, weight: Tensor) -> Tensor:
        """A weight in the type that autocast would choose for it, without a graph."""
        dtype = _autocast_dtype(weight)
        return self.get(weight, None, lambda: weight.detach().to(dtype), dtype)


class RecordedLayer:
    """A layer that is affine in its input, and what has been recorded of it."""

    def __init__(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.inputs = inputs  # h, (A, C, ...)
        self.tangent: Tensor | None = None  # derivative of h along v, of the same shape
        self.output_gradient: Tensor | None = None  # e, (A, D, ...)
        self.weight, self.bias = weight, bias

    def parameters(self) -> list[Tensor]:
        """The weight and the bias, if the layer has them."""
        return [p for p in (self.weight, self.bias) if p is not None]

    def outputs(self, inputs: Tensor) -> Tensor:
        """The layer's output."""
        raise NotImplementedError

    def linear_part(self, tangent: Tensor) -> Tensor:
        """The derivative of the output along a derivative of the input."""
        raise NotImplementedError

    def input_gradient(self, e: Tensor) -> Tensor:
        """The gradient by the input."""
        raise NotImplementedError

    def weight_gradient(self, h: Tensor, e: Tensor) -> Tensor:
        """The gradient by the weight, without `weight_factor`: the product of inputs and gradients
        by the output."""
        raise NotImplementedError

    def weight_factor(self) -> Tensor | None:
        """What the gradient by the weight is to be multiplied with, of its shape."""
        return None

    def regressors(self) -> Tensor:
        """What the weight multiplies, up to a factor: h, or h minus a constant."""
        return self.inputs

    def weighted_inputs(self, weight: Tensor, tangent_weight: Tensor | None) -> Tensor:
        """a h + b h', of h's type; h as in `regressors`."""
        h = self.regressors()
        shape = (-1, *[1] * (h.dim() - 1))
        weight = weight.view(shape)
        if self.tangent is None or tangent_weight is None:
            return torch.mul(h, weight, out=torch.empty_like(h))
        weighted = h * weight  # in the weight's type
        out = weighted if weighted.dtype == h.dtype else torch.empty_like(h)
        return torch.addcmul(weighted, self.tangent, tangent_weight.view(shape), out=out)

    def gradients(
        self, weight: Tensor, tangent_weight: Tensor | None
    ) -> Iterable[UnscaledGradient]:
        """The parameters and their gradients, with weights as in `LayerRecord.gradients`."""
        e = self.output_gradient
        assert e is not None
        if self.bias is not None:
            by_sample = e.flatten(2).sum(dim=2, dtype=weight.dtype) if e.dim() > 2 else e
            yield UnscaledGradient(self.bias, weight @ by_sample.to(weight.dtype))
        if self.weight is not None:
            weighted = self.weighted_inputs(weight, tangent_weight)
            gradient = self.weight_gradient(weighted, e)
            yield UnscaledGradient(self.weight, gradient, self.weight_factor())


class _Convolution(RecordedLayer):
    def __init__(
        self, func: Callable, arguments: dict[str, Any], constants: LayerConstants
    ) -> None:
        weight = arguments["weight"]
        super().__init__(_autocast(arguments["input"]), weight, arguments["bias"])
        self.func, self.kernel, self.groups = func, constants.kernel(weight), arguments["groups"]
        self.stride, self.padding, self.dilation = (
            [size] * (weight.dim() - 2) if isinstance(size, int) else [*size]
            for size in (arguments[name] for name in ("stride", "padding", "dilation"))
        )

    def outputs(self, inputs: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach()
        return self._run(inputs, bias)

    def linear_part(self, tangent: Tensor) -> Tensor:
        return self._run(tangent, None)

    def input_gradient(self, e: Tensor) -> Tensor:
        return self._backward(self.inputs, e, [True, False, False])[0]

    def weight_gradient(self, h: Tensor, e: Tensor) -> Tensor:
        return self._backward(h, e, [False, True, False])[1]

    def _run(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, dilation = self.stride, self.padding, self.dilation
        bias = None if bias is None else bias.to(inputs.dtype)
        return self.func(inputs, self.kernel, bias, stride, padding, dilation, self.groups)

    def _backward(self, h: Tensor, e: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        no_transposition = (False, [0] * len(self.stride))
        geometry = (self.stride, self.padding, self.dilation, *no_transposition, self.groups)
        backward = torch.ops.aten.convolution_backward.default
        return backward(e, h, self.kernel, None, *geometry, mask)


class _Linear(RecordedLayer):
    def __init__(self, arguments: dict[str, Any], constants: LayerConstants) -> None:
        weight = arguments["weight"]
        super().__init__(_autocast(arguments["input"]), weight, arguments["bias"])
        self.kernel = constants.kernel(weight)

    def outputs(self, inputs: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach().to(inputs.dtype)
        return F.linear(inputs, self.kernel, bias)

    def linear_part(self, tangent: Tensor) -> Tensor:
        return F.linear(tangent, self.kernel)

    def input_gradient(self, e: Tensor) -> Tensor:
        return e @ self.kernel

    def weight_gradient(self, h: Tensor, e: Tensor) -> Tensor:
        return e.t() @ h


class _BatchNorm(RecordedLayer):
    """On stored statistics: (h - mean) / sqrt(variance + eps) * weight + bias."""

    def __init__(self, arguments: dict[str, Any], constants: LayerConstants) -> None:
        inputs, weight = arguments["input"], arguments["weight"]
        super().__init__(inputs, weight, arguments["bias"])
        self.mean, self.variance = arguments["running_mean"], arguments["running_var"]
        self.eps = arguments["eps"]
        key = (self.eps, inputs.dtype, inputs.dim())
        self.inverse, self.gain = constants.get(self.variance, weight, self._inverse_and_gain, *key)

    def _inverse_and_gain(self) -> tuple[Tensor, Tensor]:
        """1 / sqrt(variance + eps), and its product with the weight in the inputs' type."""
        shape = (1, -1, *[1] * (self.inputs.dim() - 2))
        inverse = (self.variance + self.eps).rsqrt().view(shape)
        gain = inverse if self.weight is None else inverse * self.weight.detach().view(shape)
        return inverse, gain.to(self.inputs.dtype)

    def outputs(self, inputs: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.detach() for p in (self.weight, self.bias))
        return F.batch_norm(inputs, self.mean, self.variance, weight, bias, eps=self.eps)

    def linear_part(self, tangent: Tensor) -> Tensor:
        return tangent * self.gain

    def input_gradient(self, e: Tensor) -> Tensor:
        return e * self.gain

    def regressors(self) -> Tensor:
        return self.inputs - self.mean.view_as(self.inverse)  # in the mean's type

    def weight_gradient(self, h: Tensor, e: Tensor) -> Tensor:
        return (h * e).sum(dim=[d for d in range(e.dim()) if d != 1])

    def weight_factor(self) -> Tensor:
        return self.inverse.flatten()


def recorded_layer(
    func: Callable, args: tuple[Any, ...], kwargs: dict[str, Any], constants: LayerConstants
) -> RecordedLayer | None:
    """The layer that a call runs; None for other functions, and for forms that are not supported.

    Args:
        func: the function.
        args: its positional arguments.
        kwargs: its other arguments.
        constants: of the layers so far.
    """
    if func not in _PARAMETERS:
        return None
    names = _PARAMETERS[func]
    arguments = {**names, **dict(zip(names, args, strict=False)), **kwargs}
    inputs = arguments["input"]
    if func is F.batch_norm:
        has_statistics = arguments["running_mean"] is not None
        return (
            _BatchNorm(arguments, constants)
            if has_statistics and not arguments["training"]
            else None
        )
    if func is F.linear:
        return _Linear(arguments, constants) if inputs.dim() == 2 else None
    if inputs.dim() != arguments["weight"].dim() or isinstance(arguments["padding"], str):
        return None
    return _Convolution(func, arguments, constants)


def _autocast(values: Tensor) -> Tensor:
    """The values in the type that autocast would choose for a convolution or a linear layer."""
    return values.to(_autocast_dtype(values))


def _autocast_dtype(values: Tensor) -> torch.dtype:
    device = values.device.type
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else values.dtype
