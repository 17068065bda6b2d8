"""A pretended CUDA device, in a process that `pretended_shim` has started.

    with pretend() as counts:
        net.to("cuda"); ...; loss.backward()
    print(counts.launches, counts.waits, counts.wait_sites)

A tensor on the device is a `CudaTensor`: torch sees the device cuda:0, and every operation is
computed on the CPU. Code of torch above its dispatcher (autograd's formulas, autocast, indexing)
takes its CUDA path, and the backward pass runs in the thread of cuda:0.

Operations on tensors of both devices are refused as CUDA refuses them. Launches and waits are
counted (`pretended_cuda_counts`). Not covered: the numbers, the memory and the time of CUDA's
kernels, streams, fused attention, DALI's GPU operators, NCCL and DDP's reducer.
"""

import ctypes
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.helpers.pretended_cuda_counts import INDEXING, RESHAPE_IN_PLACE, Counts, operation_name
from tests.helpers.pretended_shim import DEVICE_COUNT

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
counts = Counts()
# Addresses of generators that were made for the device; operations get copies of Python's objects.
_cuda_generators: set[int] = set()


class CudaTensor(torch.Tensor):
    """A tensor that is said to be on cuda:0; its values are those of ``on_cpu``."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls: type, on_cpu: Tensor) -> "CudaTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=CUDA,
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Stored as a tensor of the CPU: no file can be read to a pretended device."""
        return self.on_cpu.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """C++ reads the memory without an operation."""
        return self.cpu().tolist()

    def new_tensor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, data: Any, **options: Any
    ) -> Tensor:
        """C++ copies to the device without an operation."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA, **options})

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"CudaTensor({self.on_cpu!r})"


class _DeviceMode(TorchDispatchMode):
    """Executes operations that have no `CudaTensor` yet: new tensors, copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


def _is_cuda(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _execute(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Check and count an operation, compute it on the CPU, and wrap its results."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    has_cuda = any(tensor.is_cuda for tensor in tensors)
    device = kwargs.get("device")
    on_cuda = has_cuda if device is None else _is_cuda(device)
    if not has_cuda and not on_cuda:
        return function(*args, **kwargs)
    packet = function.overloadpacket
    if packet in (aten.copy_, aten._to_copy):
        _count_copy(function, args, kwargs, on_cuda)
    else:
        _refuse_mixed_devices(function, tensors, args, kwargs, on_cuda)
        counts.operation(function, args)
    cpu_args, cpu_kwargs = tree_map_only(CudaTensor, lambda t: t.on_cpu, (args, kwargs))
    if device is not None:
        cpu_kwargs["device"] = torch.device("cpu")
    name = operation_name(function)
    result = _CPU_VERSIONS.get(name, function)(*cpu_args, **cpu_kwargs)
    if name in RESHAPE_IN_PLACE:  # the wrapper has a shape of its own
        with no_dispatch():
            function(*args, **kwargs)
    if packet is aten.copy_:
        return args[0]
    if not on_cuda:
        return result
    # An operation in place, or with out=, returns one of its arguments.
    arguments = {id(tensor.on_cpu): tensor for tensor in tensors if isinstance(tensor, CudaTensor)}

    def wrapped(value: Tensor) -> Tensor:
        return arguments[id(value)] if id(value) in arguments else CudaTensor(value)

    return tree_map_only(Tensor, wrapped, result)


def _count_copy(function: Any, args: Sequence[Any], kwargs: dict[str, Any], on_cuda: bool) -> None:
    if function.overloadpacket is aten._to_copy:  # to the CPU: into pinned memory
        waits = not kwargs.get("non_blocking", False)
        counts.copy(to_device=on_cuda, from_device=args[0].is_cuda, waits=waits)
        return
    target, source = args[:2]
    into_pageable = source.is_cuda and not target.is_cuda and not target.is_pinned()
    waits = into_pageable or not kwargs.get("non_blocking", len(args) > 2 and args[2])
    counts.copy(to_device=target.is_cuda, from_device=source.is_cuda, waits=waits)


def _refuse_mixed_devices(
    function: Any,
    tensors: Sequence[Tensor],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_cuda: bool,
) -> None:
    """Raise CUDA's error for an operation on tensors, or a generator, of both devices.

    CUDA accepts numbers of the CPU in pointwise operations, and indices of the CPU.
    """
    generator = kwargs.get("generator")
    wrong_generator = generator is not None and on_cuda != (generator._cdata in _cuda_generators)
    from_cpu = [tensor for tensor in tensors if not tensor.is_cuda]
    if len(from_cpu) in (0, len(tensors)) and not wrong_generator:
        return
    is_pointwise = torch.Tag.pointwise in function.tags or function.overloadpacket is aten.fill_
    if is_pointwise and all(tensor.dim() == 0 for tensor in from_cpu):
        return
    if function.overloadpacket in INDEXING and args[0].is_cuda:
        value = args[2] if len(args) > 2 else None
        if value is None or value.is_cuda or value.dim() == 0:
            return
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
        f"cpu! (in {function})"
    )


def _cudnn_batch_norm(*args: Any) -> tuple[Tensor, ...]:
    return (*aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8))


def _cudnn_batch_norm_backward(
    inputs: Tensor, gradient: Tensor, weight: Tensor, *statistics: Any
) -> tuple[Tensor, ...]:
    *means_and_variances, eps, _reserve = statistics
    return aten.native_batch_norm_backward(
        gradient, inputs, weight, *means_and_variances, True, eps, [True, True, True]
    )


# Operations that autograd calls for CUDA tensors alone.
_CPU_VERSIONS = {
    "cudnn_batch_norm": _cudnn_batch_norm,
    "cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
}

_torch_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """torch.tensor, whose copy to the device C++ makes without an operation."""
    tensor = _torch_tensor(data, **options)
    return tensor if device is None else tensor.to(device)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """F.scaled_dot_product_attention by torch's formula: the choice of a fused kernel asks the
    driver for the device's properties."""
    return aten._scaled_dot_product_attention_math(query, key, value, *args, **options)[0]


class _Generator(torch.Generator):
    """A generator of the CPU; `_cuda_generators` knows whether it was made for the device."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        generator = super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]
        change = _cuda_generators.add if _is_cuda(device) else _cuda_generators.discard
        change(generator._cdata)
        return generator


class _Event:
    """An event; only waiting for it is of interest."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        counts.wait("event")


class _Stream:
    """A stream that does nothing."""

    cuda_stream = stream_id = 0
    device = CUDA

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


# What torch.cuda says and does.
_TORCH_CUDA: dict[str, Any] = {
    "_initialized": True,
    "_lazy_init": lambda: None,
    "init": lambda: None,
    "is_initialized": lambda: True,
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_: True,
    "is_current_stream_capturing": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda _: None,
    "device": lambda _: nullcontext(),
    "_exchange_device": lambda _: 0,
    "_maybe_exchange_device": lambda _: 0,
    "get_device_name": lambda *_: "a pretended device",
    "get_device_capability": lambda *_: (9, 0),
    "current_stream": lambda *_: _Stream(),
    "default_stream": lambda *_: _Stream(),
    "stream": lambda _: nullcontext(),
    "Stream": lambda *_, **__: _Stream(),
    "Event": _Event,
    "synchronize": lambda *_: counts.wait("synchronize"),
    "empty_cache": lambda: None,
    "memory_allocated": lambda *_: 0,
    "memory_reserved": lambda *_: 0,
    "max_memory_allocated": lambda *_: 0,
    "reset_peak_memory_stats": lambda *_: None,
    "manual_seed": lambda _: None,
    "manual_seed_all": lambda _: None,
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "set_rng_state": lambda *_: None,
}


@contextmanager
def pretend() -> Iterator[Counts]:
    """The device, for the duration of the block; yields what it counts.

    One block in a process: the autograd engine makes its threads at the first backward pass.
    """
    os.environ.pop("LD_PRELOAD", None)  # not for processes that this one starts
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as FakeTensorMode sets it
    # Sixteen devices, for as many of which autograd asks whether they have a context.
    ctypes.c_char.in_dll(ctypes.CDLL(None), DEVICE_COUNT).value = b"\x10"
    # A wrapper cannot be put into an existing parameter, so modules get new ones.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    optimizers = importlib.import_module("torch.optim.optimizer")  # torch.optim deletes the name
    foreach_types = [*optimizers._foreach_supported_types, CudaTensor]
    counts.restart()
    with ExitStack() as stack:
        for name, value in _TORCH_CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(torch, "tensor", _tensor))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(
            mock.patch.object(optimizers, "_foreach_supported_types", foreach_types)
        )
        stack.enter_context(_DeviceMode())
        yield counts
