"""What the pretended CUDA device counts: launches, and waits of the host, with their lines of code.

A launch is a dispatched operation that starts at least one kernel on CUDA; views and allocations
start none. A wait is a call that returns only after the device has finished its queue: a value or a
shape that the host needs, a copy to the CPU, and a blocking copy from it.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tests.helpers.runs import ROOT

aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
RESHAPE_IN_PLACE = ("squeeze_", "unsqueeze_", "transpose_", "t_")  # shape and strides alone
# Operations without a kernel that are not views.
_NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("alias", "detach", "lift_fresh", "_unsafe_view", "set_", "_fused_sdp_choice"),
    *RESHAPE_IN_PLACE,
    *("is_same_size", "_has_same_storage_numel"),  # questions of forward-mode differentiation
}
_PIPELINE = f"{ROOT / 'pipeline'}/"


class Counts:
    """What the device was asked for since the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from zero."""
        self.launches = 0
        self.waits = 0
        self.launches_by_operation: Counter[str] = Counter()
        self.wait_sites: Counter[str] = Counter()

    def launch(self, operation: str) -> None:
        self.launches += 1
        self.launches_by_operation[operation] += 1

    def wait(self, reason: str) -> None:
        """Count a wait, at the innermost line of the pipeline that is being executed."""
        self.waits += 1
        self.wait_sites[f"{_line_of_pipeline()} {reason}"] += 1

    def copy(self, *, to_device: bool, from_device: bool, waits: bool) -> None:
        """Count a copy of which at least one side is on the device."""
        if to_device and from_device:
            self.launch("copy")
        elif waits:
            self.wait("copy to the CPU" if from_device else "blocking copy from the CPU")

    def operation(self, function: Any, args: Sequence[Any]) -> None:
        """Count an operation that is not a copy: the overload, and its positional arguments."""
        name = operation_name(function)
        if name == "_local_scalar_dense":
            self.wait("item")
            return
        if name in _NO_KERNEL or function.is_view:
            return
        if function.overloadpacket in INDEXING:
            self._indexing(*args[1:3])
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*function.tags}:
            self.wait(name)
        self.launch(name)

    def _indexing(self, indices: Sequence[Tensor | None], value: Tensor | None = None) -> None:
        """Count the waits of x[indices] or x[indices] = value: for the number of a mask's true
        values, and for what is on the CPU."""
        present = [index for index in indices if index is not None]
        masks = [index for index in present if index.is_cuda and index.dtype == torch.bool]
        writes_number = value is not None and not value.is_cuda
        if not (masks and writes_number):  # such a call becomes masked_fill, which does not wait
            for _ in masks:
                self.wait("boolean mask")
            if writes_number:
                self.wait("blocking copy from the CPU (the value)")
        for index in present:
            if not index.is_cuda:
                self.wait("blocking copy from the CPU (an index)")


def operation_name(function: Any) -> str:
    """add for aten.add.Tensor."""
    return function._schema.name.split("::")[1]


def _line_of_pipeline() -> str:
    """FILE:LINE of the innermost frame of the pipeline, relative to the repository."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PIPELINE):
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside pipeline/"
