"""Norms of images and the step that a norm makes smallest.

Hölder: the smallest r in the norm p with <w, r> = t is t / ||w||_q along |w|^(q-1) sign(w), where
1/p + 1/q = 1 (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016, section 4).
"""

import math

import torch
from torch import Tensor


def dual_exponent(p: float) -> float:
    """q with 1/p + 1/q = 1, for p in (1, inf]."""
    return 1.0 if math.isinf(p) else p / (p - 1.0)


def lengths(images: Tensor, p: float = 2.0) -> Tensor:
    """Norms (A,) of images (A, C, H, W), whatever their memory format; p at least 1, or inf."""
    dims = tuple(range(1, images.dim()))
    if p in (1.0, 2.0, math.inf):
        return torch.linalg.vector_norm(images, p, dim=dims)
    largest = images.abs().amax(dims)  # the powers of small values would leave fp32's range
    scale = largest.where(largest > 0, 1.0)
    return scale * torch.linalg.vector_norm(images / wide(scale), p, dim=dims)


def step_along(w: Tensor, dual_norm: Tensor, length: Tensor, p: float) -> Tensor:
    """The step (A, C, H, W) of a given p-norm along which <w, .> grows most.

    Args:
        w: (A, C, H, W), may be overwritten.
        dual_norm: (A,), ||w||_q.
        length: (A,), of the step.
        p: in (1, inf].
    """
    if p == 2.0:
        return w.mul_(wide(length / dual_norm))
    q = dual_exponent(p)
    if q == 1.0:
        return w.sign_().mul_(wide(length))
    return (w.abs() / wide(dual_norm)).pow_(q - 1.0).mul_(w.sign()).mul_(wide(length))


def wide(values: Tensor) -> Tensor:
    """(A,) values beside images: (A, 1, 1, 1)."""
    return values[:, None, None, None]


def norm_name(p: float) -> str:
    """As it is written beside a name: 2, inf, 1.5."""
    return f"{p:g}"
