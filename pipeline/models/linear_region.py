"""A piecewise linear net with a fixed activation pattern.

ReLU nets with max-pooling and batch norm on stored statistics are affine around almost every
point. Here the activation pattern at some points z (which ReLUs are on, which element each pool
takes) is recorded, and the net is evaluated at other points with that pattern. The exact gradient
of `pipeline.regularizer.piecewise_linear` needs this: f_held(z + t) = f(z) + <grad f(z), t>,
differentiable by the parameters in one ordinary backward pass.

`VisitKinks` passes on how far every unit is from its kink, for the size of the linear region.

The net's own code runs under a torch function mode, which intercepts every operation. An operation
that is not in the lists below makes a net "not piecewise linear", and the general (second-order)
path is used.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Of an activation: its slope and offset; of a pool: the indices of its elements, and None.
KinkState = tuple[Tensor, Tensor | None]

# Affine in the activations. In-place operations are allowed: only the activations at kinks are read
# again, and those are replaced.
_AFFINE: frozenset[Callable] = frozenset(
    [
        F.linear,
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        F.pad,
        torch.flatten,
        torch.cat,
        torch.transpose,
        torch.permute,
        torch.mean,
        torch.Tensor.flatten,
        torch.Tensor.view,
        torch.Tensor.reshape,
        torch.Tensor.permute,
        torch.Tensor.transpose,
        torch.Tensor.contiguous,
        torch.Tensor.mean,
        torch.Tensor.chunk,
        torch.Tensor.add,
        torch.Tensor.add_,
        torch.Tensor.__add__,
        torch.Tensor.__iadd__,
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.squeeze,
        torch.Tensor.unsqueeze,
        torch.Tensor.__getitem__,
        torch.Tensor.sub,
        torch.Tensor.__sub__,
        torch.Tensor.ndim.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        torch.Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        torch.Tensor.device.__get__,
        torch.Tensor.dtype.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        torch.Tensor.float,
        torch.Tensor.double,
        torch.Tensor.to,
        torch._assert,  # a check of shapes; gives no tensor
        torch._C._set_grad_enabled,
    ]
)
_DIVISIONS: frozenset[Callable] = frozenset([torch.Tensor.div, torch.Tensor.__truediv__])
RELUS: frozenset[Callable] = frozenset([F.relu, F.relu_, torch.relu, torch.relu_])
CLAMPS: frozenset[Callable] = frozenset([F.relu6, F.hardtanh])
LEAKY: frozenset[Callable] = frozenset([F.leaky_relu])
POOLS: frozenset[Callable] = frozenset([F.max_pool2d])


class NotPiecewiseLinear(Exception):
    """The net uses an operation that is not known to be piecewise linear."""


class RecordActivationPattern(TorchFunctionMode):
    """Runs a net and records the state of its kinks.

    Args:
        constants: tensors that do not depend on the input, by which the net may divide.
    """

    def __init__(self, constants: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.pattern: list[KinkState] = []
        self._constants = [*constants]

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in RELUS:
            out = func(*args, **kwargs)
            self.pattern.append((out > 0, None))
            return out
        if func in CLAMPS or func in LEAKY:
            x = args[0].clone() if _in_place(args, kwargs) else args[0]
            out = func(*args, **kwargs)
            if func in LEAKY:
                slope = torch.where(x > 0, 1.0, out / x).nan_to_num_(0.0)
                self.pattern.append((slope, None))
            else:
                on = out == x
                self.pattern.append((on, out.masked_fill(on, 0.0)))
            return out
        if func in POOLS:
            kwargs["return_indices"] = True
            out, indices = func(*args, **kwargs)
            self.pattern.append((indices, None))
            return out
        by_constant = any(args[1] is constant for constant in self._constants if func in _DIVISIONS)
        if not by_constant:
            _check(func, args, kwargs)
        return func(*args, **kwargs)


class FixedActivationPattern(TorchFunctionMode):
    """Runs a net with the recorded state of its kinks, for inputs of the same shape."""

    def __init__(self, pattern: list[KinkState]) -> None:
        super().__init__()
        self._pattern = iter(pattern)

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RELUS:
            on, _ = next(self._pattern)
            return _Gate.apply(args[0], on)
        if func in CLAMPS or func in LEAKY:
            slope, offset = next(self._pattern)
            out = args[0] * slope
            return out if offset is None else out + offset
        if func in POOLS:
            indices, _ = next(self._pattern)
            return max_pool_at(args[0], indices)
        return func(*args, **kwargs)


class Kinks(NamedTuple):
    """The M kinks of one operation: the net is affine while no value crosses a threshold."""

    values: Tensor  # (B, M), affine in the inputs
    thresholds: tuple[float, ...]


class VisitKinks(TorchFunctionMode):
    """Runs a net with the recorded pattern of ONE image, for a batch of B inputs.

    ``visit`` is called with the `Kinks` of each operation, in the order of the net: the inputs of
    an activation; of a max-pool, the selected element minus the element at each position of its
    window. The difference is 0 for all inputs where a position is the selected one or outside of
    the image.
    """

    def __init__(self, pattern: list[KinkState], visit: Callable[[Kinks], None]) -> None:
        super().__init__()
        self._pattern = iter(pattern)
        self._visit = visit

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RELUS or func in LEAKY or func in CLAMPS:
            slope, offset = next(self._pattern)
            thresholds = clamp_limits(func, *args, **kwargs) if func in CLAMPS else (0.0,)
            self._visit(Kinks(args[0].flatten(1), thresholds))
            out = args[0] * slope.to(args[0].dtype)  # products with booleans are slow on a CPU
            return out if offset is None else out + offset
        if func in POOLS:
            indices, _ = next(self._pattern)
            selected = max_pool_at(args[0], indices.expand(len(args[0]), *indices.shape[1:]))
            for values in pool_differences(selected, *args, **kwargs):
                self._visit(Kinks(values.flatten(1), (0.0,)))
            return selected
        return func(*args, **kwargs)


def clamp_limits(
    func: Callable,
    _x: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    *_: bool,
    **_inplace: bool,
) -> tuple[float, float]:
    """The two kinks of a call of F.relu6 or F.hardtanh."""
    return (0.0, 6.0) if func is F.relu6 else (min_val, max_val)


def pool_differences(
    selected: Tensor,
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    **_: bool,
) -> Iterator[Tensor]:
    """``selected`` (B, C, h, w) minus the elements of x (B, C, H, W) at each window position."""
    (kh, kw), (sh, sw) = _pair(kernel_size), _pair(stride or kernel_size)
    (ph, pw), (dh, dw) = _pair(padding), _pair(dilation)
    h, w = selected.shape[2:]
    # Windows may reach over the lower right edge with ceil_mode.
    below = max((h - 1) * sh + (kh - 1) * dh + 1 - ph - x.shape[2], 0)
    right = max((w - 1) * sw + (kw - 1) * dw + 1 - pw - x.shape[3], 0)
    padded = F.pad(x, (pw, right, ph, below)) if max(ph, pw, below, right) else x
    inside = F.pad(torch.ones_like(x[:1, :1]), (pw, right, ph, below))
    for top, left in itertools.product(range(0, kh * dh, dh), range(0, kw * dw, dw)):
        rows, columns = slice(top, top + h * sh, sh), slice(left, left + w * sw, sw)
        differences = selected - padded[:, :, rows, columns]
        yield differences * inside[:, :, rows, columns]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


class _Gate(torch.autograd.Function):
    """x where ``on``, else 0. On a CPU a product with booleans is slow, so they are cast first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, on: Tensor) -> Tensor:
        ctx.save_for_backward(on)
        return _gate(x, on)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        return _gate(gradient, *ctx.saved_tensors), None


def _gate(x: Tensor, on: Tensor) -> Tensor:
    return x * on if x.is_cuda else on.view(torch.uint8).to(x.dtype).mul_(x)


def max_pool_at(x: Tensor, indices: Tensor) -> Tensor:
    """(N, C, h, w) elements of x (N, C, H, W), by indices within each H x W.

    The result has the memory format of x.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    x, indices = x.permute(0, 2, 3, 1), indices.permute(0, 2, 3, 1)
    elements = x.flatten(1, 2).gather(1, indices.flatten(1, 2)).view(indices.shape)
    return elements.permute(0, 3, 1, 2)


def _check(func: Callable, args: tuple, kwargs: dict) -> None:
    if func is F.dropout:
        training = kwargs.get("training", args[2] if len(args) > 2 else True)
    elif func is F.batch_norm:
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
    elif func in _AFFINE:
        return
    else:
        raise NotPiecewiseLinear(getattr(func, "__name__", str(func)))
    if training:
        raise NotPiecewiseLinear(f"{func.__name__} in training mode")


def _in_place(args: tuple, kwargs: dict) -> bool:
    return kwargs.get("inplace", len(args) > 1 and args[1] is True)


def is_piecewise_linear(net: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Whether the net is the linear function of its fixed activation pattern, tried on one image
    (1, C, H, W)."""
    return not why_not_piecewise_linear(net, images)


def why_not_piecewise_linear(net: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """Why the net is not the linear function of its fixed activation pattern, as far as one image
    (1, C, H, W) shows; empty if it is: every operation is known, and the logits are the same.

    They differ if the net reads the input of an activation after its in-place change, which a fixed
    pattern does not make.
    """
    try:
        with torch.no_grad():
            with RecordActivationPattern() as record:
                logits = net(images)
            with FixedActivationPattern(record.pattern):
                fixed = net(images)
    except NotPiecewiseLinear as error:
        return str(error)
    agree = bool((fixed - logits).abs().amax() <= 1e-3 * logits.abs().amax())
    return "" if agree else "other logits with a fixed activation pattern"
