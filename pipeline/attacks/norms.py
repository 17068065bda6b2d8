"""Norms of images, and the step of smallest norm to a hyperplane.

By Hölder's inequality the r of smallest p-norm with <w, r> = t has the norm t / ||w||_q and the
direction |w|^(q-1) sign(w), where 1/p + 1/q = 1 (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016,
section 4).
"""

import math

import torch
from torch import Tensor


def dual_exponent(p: float) -> float:
    """q with 1/p + 1/q = 1, for p in (1, inf]."""
    return 1.0 if math.isinf(p) else p / (p - 1.0)


def per_sample_norm(images: Tensor, p: float = 2.0) -> Tensor:
    """Norms (A,) of images (A, C, H, W), whatever their memory format; p at least 1, or inf."""
    dims = tuple(range(1, images.dim()))
    if p in (1.0, 2.0, math.inf):
        return torch.linalg.vector_norm(images, p, dim=dims)
    # Without scaling, powers of small values would leave fp32's range. The scale has no graph: it
    # cancels in the gradient.
    largest = images.detach().abs().amax(dims)
    scale = largest.where(largest > 0, 1.0)
    return scale * torch.linalg.vector_norm(images / expand_to_images(scale), p, dim=dims)


def per_sample_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> (A,) of images (A, C, H, W).

    Row by row first: the sum over all values of a single image would be split over threads, and
    differ in the last bits from that of the image in a batch.
    """
    return (a * b).sum(dim=3).flatten(1).sum(dim=1)


def steepest_step(w: Tensor, dual_norm: Tensor, length: Tensor, p: float) -> Tensor:
    """The step (A, C, H, W) of a given p-norm with the largest <w, step>; differentiable.

    Args:
        w: (A, C, H, W).
        dual_norm: (A,), ||w||_q; where it is infinite, the step is zero.
        length: (A,), of the step.
        p: in (1, inf].
    """
    if p == 2.0:
        return w * expand_to_images(length / dual_norm)
    if math.isinf(p):
        return w.sign() * expand_to_images(length)
    direction = signed_power(w / expand_to_images(dual_norm), dual_exponent(p) - 1.0)
    return direction * expand_to_images(length)


def signed_power(values: Tensor, exponent: float) -> Tensor:
    """sign(x) |x|^exponent, with derivative 0 at x = 0, where the power may have none."""
    zero = values == 0
    size = values.abs().masked_fill(zero, 1.0).pow(exponent)
    return values.sign() * size.masked_fill(zero, 0.0)


def expand_to_images(values: Tensor) -> Tensor:
    """(A,) values as (A, 1, 1, 1), to be multiplied with images."""
    return values[:, None, None, None]
