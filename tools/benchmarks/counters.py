"""A counter of floating-point operations. Unlike times, counts have no noise."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Result = TypeVar("Result")


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
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def counted(run: Callable[[], Result]) -> tuple[Result, int]:
    """What ``run`` returns, and the FLOPs that it took."""
    with Flops() as counter:
        result = run()
    return result, counter.total
