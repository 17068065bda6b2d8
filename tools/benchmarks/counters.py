"""A counter of floating-point operations. Unlike times, counts have no noise."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Result = TypeVar("Result")

# Fused attention on a CPU has no formula of torch's. Its arguments begin as those of the kernels on
# a GPU do.
_ON_GPU = "_scaled_dot_product_flash_attention"
_ON_CPU = f"{_ON_GPU}_for_cpu"
_FORMULAS = {
    **flop_registry,
    **{
        getattr(torch.ops.aten, _ON_CPU + suffix): flop_registry[
            getattr(torch.ops.aten, _ON_GPU + suffix)
        ]
        for suffix in ("", "_backward")
    },
}


class Flops(TorchDispatchMode):
    """Counts FLOPs by torch's own formulas.

    torch's FlopCounterMode cannot be used: it registers hooks on modules, which fail under nested
    calls of ``autograd.grad``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def counted(run: Callable[[], Result]) -> tuple[Result, int]:
    """What ``run`` returns, and the FLOPs that it took."""
    with Flops() as counter:
        result = run()
    return result, counter.total
