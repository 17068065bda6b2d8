"""Sums and multiples of gradients by all parameters, in few launches on a GPU.

In: a list with a gradient for each parameter. torch's foreach functions process a whole list; one
call a parameter would take about as long on a GPU as a small layer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Gradients = list[Tensor | None]  # None: the result does not depend on the parameter


class UnscaledGradient(NamedTuple):
    """A gradient by a parameter, up to a factor."""

    parameter: Tensor
    gradient: Tensor  # of the parameter's shape; with a factor, not of a narrower type than that
    factor: Tensor | None = None  # of the same shape; None: 1


def add_gradients(total: Gradients, terms: Sequence[Tensor | None]) -> Gradients:
    """Sums, in place of the first, which must come from this function; ``terms`` may have more
    entries.

    autograd returns one tensor, or views of it, for parameters that the net adds to one another,
    such as position embeddings. Such terms are copied before anything is added to them.
    """
    if any(a is None for a in total):  # not for later parts of a batch
        storages = Counter(_storage(term) for term in terms if term is not None)
        terms = [
            _own(term, storages) if a is None else term
            for a, term in zip(total, terms, strict=False)
        ]
    pairs = [(a, b) for a, b in zip(total, terms, strict=False) if a is not None and b is not None]
    if pairs:
        sums, addends = zip(*pairs, strict=True)
        torch._foreach_add_(sums, addends)  # pyright: ignore[reportPrivateImportUsage]
    return [b if a is None else a for a, b in zip(total, terms, strict=False)]


def scale_gradients_(gradients: Sequence[Tensor | None], factor: Tensor) -> None:
    """Multiply all gradients by a factor (scalar), in place."""
    present = [gradient for gradient in gradients if gradient is not None]
    if present:
        torch._foreach_mul_(present, factor)  # pyright: ignore[reportPrivateImportUsage]


def scaled_gradients(terms: Sequence[UnscaledGradient], unit: Tensor) -> list[Tensor]:
    """Each gradient times its factor and times ``unit`` (scalar), in the parameter's type.

    The gradients are overwritten.
    """
    pairs = [(term.gradient, term.factor) for term in terms if term.factor is not None]
    if pairs:
        products, factors = zip(*pairs, strict=True)
        torch._foreach_mul_(products, factors)  # pyright: ignore[reportPrivateImportUsage]
    scaled = [term.gradient for term in terms]
    other_type = [n for n, term in enumerate(terms) if scaled[n].dtype != term.parameter.dtype]
    for n in other_type:
        scaled[n] = torch.empty_like(scaled[n], dtype=terms[n].parameter.dtype)
    if other_type:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [scaled[n] for n in other_type], [terms[n].gradient for n in other_type]
        )
    scale_gradients_(scaled, unit)
    return scaled


def _own(term: Tensor | None, storages: Mapping[int, int]) -> Tensor | None:
    """The tensor, or a copy of it if others of the same gradient use its memory, or if several of
    its elements do."""
    if term is None or (storages[_storage(term)] == 1 and 0 not in term.stride()):
        return term
    return term.clone()


def _storage(tensor: Tensor) -> int:
    """Identifies a tensor's memory, which its views share."""
    return tensor.untyped_storage()._cdata
