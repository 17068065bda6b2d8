"""What CUDA does with expressions: which it refuses, and for which the host waits.

The pretended device is compared with this table; where there is a real device, so is that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """An expression of tensors on a device, and what CUDA does."""

    expression: Callable[[Tensor, Tensor], Any]  # of `values_on` and `indices_on` the device
    refused: bool = False  # because it mixes devices
    waits: bool = False


def values_on(device: torch.device) -> Tensor:
    """(4,) fp32."""
    return torch.tensor([1.0, -2.0, 3.0, -4.0]).to(device)


def indices_on(device: torch.device) -> Tensor:
    """(2,) int64."""
    return torch.tensor([0, 2]).to(device)


def _assign(target: Tensor, index: Any, value: Any) -> None:
    target[index] = value


_CPU_VALUES, _CPU_INDICES = torch.ones(4), torch.tensor([1, 3])

RULES: dict[str, Rule] = {
    # Tensors of both devices.
    "x + CPU vector": Rule(lambda x, _: x + _CPU_VALUES, refused=True),
    "CPU vector * x": Rule(lambda x, _: _CPU_VALUES * x, refused=True),
    "CPU vector @ x": Rule(lambda x, _: _CPU_VALUES @ x, refused=True),
    "x + CPU number": Rule(lambda x, _: x + torch.tensor(2.0)),
    "cat": Rule(lambda x, _: torch.cat([x, _CPU_VALUES]), refused=True),
    "gather by CPU indices": Rule(lambda x, _: x.gather(0, _CPU_INDICES), refused=True),
    "index_copy of CPU values": Rule(
        lambda x, i: x.index_copy(0, i, _CPU_VALUES[:2]), refused=True
    ),
    "CPU vector[i]": Rule(lambda _, i: _CPU_VALUES[i], refused=True),
    "CPU generator": Rule(
        lambda x, _: torch.rand(2, device=x.device, generator=torch.Generator()), refused=True
    ),
    "x[CPU indices]": Rule(lambda x, _: x[_CPU_INDICES], waits=True),
    # Values and shapes that the host needs.
    "item": Rule(lambda x, _: x[0].item(), waits=True),
    "bool": Rule(lambda x, _: bool((x > 0).any()), waits=True),
    "tolist": Rule(lambda x, _: x.tolist(), waits=True),
    "equal": Rule(lambda x, _: torch.equal(x, x + 1), waits=True),
    "nonzero": Rule(lambda x, _: x.nonzero(), waits=True),
    "unique": Rule(lambda x, _: x.unique(), waits=True),
    "x[mask]": Rule(lambda x, _: x[x > 0], waits=True),
    "x[mask] = tensor": Rule(lambda x, i: _assign(x, x > 0, x[i]), waits=True),
    "x[mask] = number": Rule(lambda x, _: _assign(x, x > 0, 0.0)),
    # From 2.15 on, torch makes index_fill_ of it.
    "x[i] = number": Rule(lambda x, i: _assign(x, i, 0.0), waits=torch.__version__ < (2, 15)),
    "x[i] = tensor": Rule(lambda x, i: _assign(x, i, x[i])),
    "where": Rule(lambda x, _: x.where(x > 0, 0.0)),
    "topk": Rule(lambda x, _: x.topk(2)),
    "argsort": Rule(lambda x, _: x.argsort()),
    # Copies and new tensors.
    "to the CPU": Rule(lambda x, _: x.cpu(), waits=True),
    "to the CPU, not blocking": Rule(lambda x, _: x.to("cpu", non_blocking=True)),
    "from the CPU": Rule(lambda x, _: _CPU_VALUES.to(x.device), waits=True),
    "from the CPU, not blocking": Rule(lambda x, _: _CPU_VALUES.to(x.device, non_blocking=True)),
    "copy_ to the CPU": Rule(lambda x, _: torch.zeros(4).copy_(x), waits=True),
    "copy_ from the CPU": Rule(lambda x, _: x.copy_(_CPU_VALUES), waits=True),
    "torch.tensor": Rule(lambda x, _: torch.tensor([1.0], device=x.device), waits=True),
    "new_tensor": Rule(lambda x, _: x.new_tensor([1.0]), waits=True),
    "new_full": Rule(lambda x, _: x.new_full((2,), 1.0)),
    "arange": Rule(lambda x, _: torch.arange(3, device=x.device)),
}
