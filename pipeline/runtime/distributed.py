"""Ranks: initialisation for torchrun, SLURM tasks and a single process, and joint exits.

In: the environment (torchrun's or SLURM's variables) and `RuntimeConfig`. Out: a
`DistributedContext` with this process's rank, its device and the collectives that runs need.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.config import RuntimeConfig
from pipeline.errors import USER_ERROR_EXIT_CODE, Stopped, UserError, first_few, first_line
from pipeline.runtime.agent import exit_with_agent
from pipeline.runtime.allocator import retain_freed_blocks
from pipeline.runtime.joint_exit import exit_after, exit_alone, step_deadline
from pipeline.runtime.liveness import LivenessBoard
from pipeline.runtime.machine import affinity, cpu_name
from pipeline.runtime.progress import Progress
from pipeline.runtime.rank_variables import ranks_from_env
from pipeline.runtime.rendezvous import fresh_store
from pipeline.runtime.reproducibility import set_tf32, use_reproducible_kernels

Result = TypeVar("Result")

_NCCL_WAITS_LONGER = timedelta(seconds=60)


@dataclass(frozen=True)
class DistributedContext:
    """This process: global and local rank, the numbers of ranks, and the device.

    Attributes:
        host_group: the ranks' group for values on the host. With GPUs the default group is NCCL's,
            whose operations neither fail nor time out where Python can see it.
        step_deadline: a context for a step that waits for other ranks on the GPU.
        progress: of this rank, which the other ranks print when it is lost.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None  # None: the default group
    step_deadline: AbstractContextManager[None] = field(default_factory=nullcontext)
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def single(cls, device: torch.device) -> "DistributedContext":
        """The only rank of a process without a process group."""
        return cls(0, 1, 0, 1, device)

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

    def num_sharing_cores(self) -> int:
        """Number of ranks, this one included, that may use exactly the cores of this one: those of
        a node, or one where SLURM binds each task to its own cores."""
        own = socket.gethostname(), affinity()
        return self.gather(own).count(own)

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
        exit_alone(str(error))
    device = _device(config, local_rank)
    use_reproducible_kernels()
    if device.type == "cpu":
        retain_freed_blocks()
    set_tf32(config.tf32)
    with exit_with_agent():
        store, host_group = _join(rank, size, device, config)
    progress = Progress()
    liveness = LivenessBoard(store, rank, size, progress)
    deadline = nullcontext()
    if size > 1 and host_group is not None:
        deadline = step_deadline(store, rank, liveness, config.collective_timeout)
    try:
        yield DistributedContext(
            rank, size, local_rank, local_size, device, host_group, deadline, progress
        )
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        exit_after(error, store, liveness, rank, size)
        raise
    finally:
        liveness.close()
        if size == 1 and dist.is_initialized():  # no other rank to wait for, also after an error
            dist.destroy_process_group()
    if size > 1:
        dist.destroy_process_group()


def _device(config: RuntimeConfig, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        exit_alone(
            f"runtime.device is cuda, but torch sees no GPU on {socket.gethostname()}; "
            "use --runtime.device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if config.device == "cpu" or not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank):
        local_rank = 0  # a rank is a task of SLURM, which shows each task its own GPU only
    if local_rank >= count:
        exit_alone(
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
    check_same_device_type(store, rank, size, device.type)
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


def check_same_device_type(store: Store, rank: int, size: int, device_type: str) -> None:
    """Exit if some ranks run on a GPU and others on the CPU, because a node's GPUs are not visible:
    the ranks would wait for each other in different backends.

    Raises:
        SystemExit: on every rank; rank 0 prints the hosts.
    """
    store.set(f"device/{rank}", f"{device_type} {socket.gethostname()}")
    if rank == 0:
        devices = [store.get(f"device/{other}").decode().split(" ", 1) for other in range(size)]
        without_gpu = sorted({host for kind, host in devices if kind == "cpu"})
        is_mixed = len({kind for kind, _ in devices}) > 1
        store.set("device", first_few(without_gpu) if is_mixed else "")
    hosts = store.get("device").decode()
    if hosts and rank == 0:
        exit_alone(
            f"torch sees no GPU on {hosts}, but it does on other nodes; check the driver there, or "
            "leave these nodes out (launchers: --exclude), or use --runtime.device cpu for all"
        )
    if hosts:
        raise SystemExit(USER_ERROR_EXIT_CODE)


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
        exit_alone(
            f"rank {rank} of {size} on {host} {action} {address} for {config.connect_timeout} s "
            f"({first_line(error)}); check that every node resolves that name and that the "
            "port is free and open, or wait longer with --runtime.connect_timeout"
        )
