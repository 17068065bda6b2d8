"""Linear bounds of a net's outputs over a ball of inputs (CROWN).

Zhang, Weng, Chen, Hsieh, Daniel, NeurIPS 2018. Let z be the input of a ReLU, between l < 0 < u in
the ball. Then

    s z  <=  relu(z)  <=  u (z - l) / (u - l)        s: 0 or 1

and a linear function of the net's values is bounded from below by replacing each relu(z) that has a
positive coefficient by the left side, and each with a negative coefficient by the right side. This
goes from the outputs back to the inputs like a gradient, so it is computed by autograd: in the
backward pass a ReLU multiplies positive coefficients by the slope on the left and negative ones by
that on the right. Other layers are affine and need no code.

With G the coefficients of relu(z) and P those of z that replace them, everything between kinks is
affine, so at the centre x of the ball the bound is below the function by the sum over all kinks of

    slack = G relu(z(x)) - (P z(x) + G times the intercept of the side)    >= 0

and in the p-ball of radius eps the function is at least f(x) - sum of slacks - eps ||P_x||_q, with
P_x the coefficients of the inputs and q dual to p.

Leaky ReLUs and clamps are sums of ReLUs. A max-pool that selects x_m at the centre is at least x_m,
and at most x_m + sum over j of relu(x_j - x_m).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from pipeline.models.linear_region import (
    CLAMPS,
    LEAKY,
    POOLS,
    RELUS,
    clamp_limits,
    max_pool_at,
    pool_differences,
)


class Relaxation:
    """Two linear functions around the M ReLUs of one operation."""

    def __init__(self, values: Tensor, scale: Tensor, is_pool: bool) -> None:
        """Take the ReLUs' inputs.

        Args:
            values: (B, ...), B times the values at the centre, with a graph.
            scale: the largest absolute value that they were computed from.
            is_pool: they are differences in the windows of a max-pool, whose sum of ReLUs is only
                an upper bound; the lower function is 0.
        """
        self.values = values.flatten(1).clone()  # (B, M); the net may change its own in place
        self.scale = scale
        self._slack = values.new_zeros(())
        self._is_pool = is_pool
        self._shape = values.shape[1:]
        self._slopes: tuple[Tensor, Tensor] | None = None
        self._slacks: tuple[Tensor, Tensor] | None = None

    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        """Set the smallest and the largest value (M,) of each ReLU's input in the ball."""
        off = upper <= 0
        on = ~off & (lower >= 0)
        unstable = ~off & ~on  # also where a bound is not a number, and so the results
        z = self.values[0].detach()
        width = torch.where(unstable, upper - lower, 1.0)
        high = torch.where(unstable, upper / width, on.to(z.dtype))
        # Above relu(lower) and relu(upper) also after rounding.
        intercept = 4.0 * torch.finfo(z.dtype).eps * upper - high * lower
        intercept = torch.where(unstable, intercept, 0.0)
        low = (on | (unstable & (upper > -lower))).to(z.dtype)
        if self._is_pool:
            low = torch.zeros_like(low)
        relu = z.clamp(min=0.0)
        self._slopes = low.view(self._shape), high.view(self._shape)
        self._slacks = (
            (relu - low * z).clamp(min=0.0),
            (high * z + intercept - relu).clamp(min=0.0),
        )

    def backward(self, coefficients: Tensor) -> Tensor:
        """Coefficients of the inputs (B, ...) from those of the outputs."""
        assert self._slopes is not None
        assert self._slacks is not None
        low, high = self._slopes
        positive, negative = coefficients.clamp(min=0.0), coefficients.clamp(max=0.0)
        below, above = self._slacks
        self._slack = positive.flatten(1) @ below - negative.flatten(1) @ above
        return positive.mul_(low).add_(negative.mul_(high))

    def take_slack(self) -> Tensor:
        """The slack (B,) of the last backward pass, and 0 until the next one."""
        slack, self._slack = self._slack, self._slack.new_zeros(())
        return slack


class _RelaxedRelu(torch.autograd.Function):
    """relu(values), whose gradient is `Relaxation.backward`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, relaxation: Relaxation) -> Tensor:
        ctx.relaxation = relaxation
        return values.clamp(min=0.0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, coefficients: Tensor
    ) -> tuple[Tensor, None]:
        return ctx.relaxation.backward(coefficients), None


class RelaxKinks(TorchFunctionMode):
    """Runs a piecewise linear net on B copies of one image, for linear bounds of its values.

    Attributes:
        groups: for each operation with kinks its relaxations, in the order of the net.
    """

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[Relaxation]] = []

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RELUS:
            self.groups.append([])
            return self._relu(args[0], args[0])
        if func in LEAKY:
            self.groups.append([])
            slope = _leaky_slope(*args, **kwargs)
            return slope * args[0] + (1.0 - slope) * self._relu(args[0], args[0])
        if func in CLAMPS:
            self.groups.append([])
            low, high = clamp_limits(func, *args, **kwargs)
            x, ends = args[0], max(abs(low), abs(high))
            return low + self._relu(x - low, x, ends) - self._relu(x - high, x, ends)
        if func in POOLS:
            self.groups.append([])
            x = args[0]
            _, indices = func(*args, **{**kwargs, "return_indices": True})
            out = selected = max_pool_at(x, indices)
            for difference in pool_differences(selected, *args, **kwargs):
                out = out + self._relu(-difference, x, is_pool=True)
            return out
        return func(*args, **kwargs)

    def _relu(
        self, values: Tensor, source: Tensor, least: float = 0.0, is_pool: bool = False
    ) -> Tensor:
        scale = source.detach().abs().amax().clamp(min=least)
        relaxation = Relaxation(values, scale, is_pool)
        self.groups[-1].append(relaxation)
        return _RelaxedRelu.apply(values, relaxation)


def _leaky_slope(_x: Tensor, negative_slope: float = 0.01, *_: bool, **_inplace: bool) -> float:
    """The slope below zero of a call of F.leaky_relu."""
    return negative_slope
