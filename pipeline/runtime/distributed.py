"""Ranks: initialisation for torchrun, SLURM tasks and a single process, and joint exits.

In: the environment (torchrun's or SLURM's variables) and `RuntimeConfig`. Out: a
`DistributedContext` with this process's rank, its device and the collectives that runs need.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.config import RuntimeConfig
from pipeline.errors import (
    LOST_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    Stopped,
    UserError,
    disk_message,
    first_line,
    is_disk_error,
)
from pipeline.runtime.agent import exit_with_agent
from pipeline.runtime.allocator import is_out_of_memory, retain_freed_blocks
from pipeline.runtime.machine import cpu_name
from pipeline.runtime.rank_variables import ranks_from_env
from pipeline.runtime.rendezvous import LivenessBoard, answer_in_time, fresh_store
from pipeline.runtime.reproducibility import set_tf32, use_reproducible_kernels
from pipeline.runtime.step_deadline import StepDeadline

Result = TypeVar("Result")

_NCCL_WAITS_LONGER = timedelta(seconds=60)


@dataclass(frozen=True)
class DistributedContext:
    """This process: global and local rank, the numbers of ranks, and the device.

    Attributes:
        host_group: the ranks' group for values on the host. With GPUs the default group is NCCL's,
            whose operations neither fail nor time out where Python can see it.
        step_deadline: a context for a step that waits for other ranks on the GPU.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None  # None: the default group
    step_deadline: AbstractContextManager[None] = field(default_factory=nullcontext)

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, the only one to write shared files."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The device's name, for reports."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return cpu_name()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor on the host over all ranks, in place."""
        dist.all_reduce(values, group=self.host_group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Collect an object of every rank on every rank, in rank order."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def run_unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """Run ``work``, which must not use collectives, on every rank.

        Returns:
            This rank's result; None on every rank if ``work`` raised `Stopped` on any of them.
        """
        result = None
        with suppress(Stopped):
            result = work()
        return None if any(self.gather(result is None)) else result

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.host_group)


def restarted() -> bool:
    """Whether torchrun or SLURM restarted this run. A restart resumes from the newest results;
    ``--resume`` applies to the first start only."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)


@contextmanager
def distributed_session(config: RuntimeConfig) -> Iterator[DistributedContext]:
    """Connect the ranks; end the process group afterwards.

    A single process has a process group too, so that all runs use the same code. After a
    `UserError` or an error of a full disk in the block, every rank exits; the first rank that fails
    prints one line.
    """
    try:
        rank, size, local_rank, local_size = ranks_from_env()
    except UserError as error:
        _exit_alone(str(error))
    device = _device(config, local_rank)
    use_reproducible_kernels()
    if device.type == "cpu":
        retain_freed_blocks()
    set_tf32(config.tf32)
    with exit_with_agent():
        store, host_group = _join(rank, size, device, config)
    liveness = LivenessBoard(store, rank, size)
    deadline = nullcontext()
    if size > 1 and host_group is not None:
        deadline = _step_deadline(store, rank, liveness, config.collective_timeout)
    try:
        yield DistributedContext(rank, size, local_rank, local_size, device, host_group, deadline)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        _exit_after(error, store, liveness, rank, size)
        raise
    finally:
        if size == 1 and dist.is_initialized():  # no other rank to wait for, also after an error
            dist.destroy_process_group()
    if size > 1:
        dist.destroy_process_group()


LESS_MEMORY = (
    "use --regularizer.max_images auto, a larger train.gradient_accumulation_steps, a smaller "
    "evaluation.batch_size, or runtime.precision bf16"
)


def _device(config: RuntimeConfig, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError(
            "runtime.device is cuda, but torch sees no GPU on this machine; "
            "use --runtime.device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if config.device == "cpu" or not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        _exit_alone(
            f"local rank {local_rank} has no GPU: torch sees {count}; "
            f"start at most {count} ranks a node (--nproc_per_node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(
    rank: int, size: int, device: torch.device, config: RuntimeConfig
) -> tuple[Store, dist.ProcessGroup | None]:
    """Connect the ranks; returns their store, and their group for the host if it is another one."""
    on_gpu = device.type == "cuda"
    timeout = timedelta(seconds=config.collective_timeout)
    if size == 1:
        # Documented, but not re-exported in a way that type checkers accept.
        store: Store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    else:
        store = _rendezvous(rank, size, config)
    store.set_timeout(timeout)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        # NCCL's thread aborts the process without a message, so others come first.
        timeout=timeout + _NCCL_WAITS_LONGER if on_gpu else timeout,
        device_id=device if on_gpu else None,
    )
    if not on_gpu:
        return store, None
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(host_group, dist.ProcessGroup), "every rank is in it"
    return store, host_group


def _rendezvous(rank: int, size: int, config: RuntimeConfig) -> Store:
    """The store of all ranks; rank 0 or torchrun serves it at MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: the variables are missing.
        SystemExit: not all ranks connected. Every rank prints it, since the missing ones may
            include rank 0.
    """
    host, names = socket.gethostname(), ("MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        raise UserError(
            f"{size} tasks were started on {host} but MASTER_ADDR and MASTER_PORT are not set; "
            "start the run with torchrun or with the launchers of this project"
        )
    timeout = timedelta(seconds=config.connect_timeout)
    try:
        store = next(rendezvous("env://", rank, size, timeout=timeout))[0]
        return fresh_store(store, rank, size, config.connect_timeout)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ[name] for name in names)
        action = "waited for the other ranks at" if rank == 0 else "cannot reach rank 0 at"
        _exit_alone(
            f"rank {rank} of {size} on {host} {action} {address} for {config.connect_timeout} s "
            f"({first_line(error)}); check that every node resolves that name and that the "
            "port is free and open, or wait longer with --runtime.connect_timeout"
        )


def _exit_alone(message: str) -> NoReturn:
    """Print an error that only this rank may have, before the ranks have joined, and exit."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR_EXIT_CODE) from None


def _exit_with_error(store: Store, rank: int, size: int, message: str) -> NoReturn:
    """Exit without collectives, since other ranks may wait in one; torchrun ends them."""
    if size == 1:
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_EXIT_CODE)
    own = str(rank)
    first_to_fail = answer_in_time(lambda: store.compare_set("failed", "", own).decode(), own)
    if first_to_fail == own:
        print(message, file=sys.stderr, flush=True)
    time.sleep(1)  # until the line is printed: torchrun then ends all ranks
    os._exit(USER_ERROR_EXIT_CODE)


def _is_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank ended or never connected."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _exit_after(
    error: Exception, store: Store, liveness: LivenessBoard, rank: int, size: int
) -> None:
    """Exit if an error is a user's, of a full disk or memory, or follows from another rank's."""
    if isinstance(error, UserError):
        _exit_with_error(store, rank, size, f"error: {error}")
    if isinstance(error, OSError):
        if is_disk_error(error):
            _exit_with_error(store, rank, size, f"error: {disk_message(error)}")
        return
    if is_out_of_memory(error):
        _exit_with_error(
            store, rank, size, f"error: out of memory ({first_line(error)}); {LESS_MEMORY}"
        )
    if _another_failed(store, rank):
        raise SystemExit(USER_ERROR_EXIT_CODE) from None
    if size > 1 and _is_lost(error):
        _exit_lost(rank, first_line(error), liveness)


def _step_deadline(store: Store, rank: int, liveness: LivenessBoard, seconds: int) -> StepDeadline:
    def give_up() -> None:
        if _another_failed(store, rank):
            os._exit(USER_ERROR_EXIT_CODE)
        reason = f"a step took more than {seconds} s, runtime.collective_timeout"
        _exit_lost(rank, reason, liveness)

    return StepDeadline(seconds, give_up)


def _exit_lost(rank: int, reason: str, liveness: LivenessBoard) -> NoReturn:
    """Print that other ranks are lost, and which; exit at once."""
    print(
        f"error: rank {rank} lost the other ranks ({reason}){liveness.unresponsive()}; rerun the "
        "same command to resume from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST_EXIT_CODE)  # the process group's threads may still wait for the lost rank


def _another_failed(store: Store, rank: int) -> bool:
    """Whether a collective failed because another rank has printed an error and exited."""
    own = str(rank)
    return answer_in_time(
        lambda: store.check(["failed"]) and store.get("failed").decode() != own, otherwise=False
    )
