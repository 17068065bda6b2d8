"""Ranks as processes of their own that join over gloo and do steps, without a net or data."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.config import RuntimeConfig
from pipeline.runtime import distributed, liveness
from pipeline.runtime.distributed import DistributedContext, distributed_session

SIZE = 3  # number of ranks
TIMEOUT = 2  # runtime.collective_timeout, in seconds
ANSWER_SECONDS = 1.5

Work = Callable[[DistributedContext], None]

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])  # torch is imported once


def run_ranks(
    folder: Path,
    work: Work,
    ending: Sequence[int] = (0, 1, 2),
    *,
    on_gpus: bool = False,
    answer_seconds: float = ANSWER_SECONDS,
) -> dict[int, str]:
    """Run three ranks.

    Args:
        folder: for what they print.
        work: a module's function, which each rank calls.
        ending: the ranks that end by themselves; the others are killed when these have ended, or
            after 40 s.
        on_gpus: whether the ranks have a group for the host and a limit for a step, as with NCCL.
        answer_seconds: after which a rank without a report does not answer.

    Returns:
        For each of these ranks its exit code and what it printed on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _PROCESSES.Process(
            target=_run_rank, args=(folder, rank, port, work, on_gpus, answer_seconds)
        )
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 40
    for rank in ending:
        processes[rank].join(max(deadline - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return {rank: f"{codes[rank]} {(folder / str(rank)).read_text()}" for rank in ending}


def _run_rank(
    folder: Path, rank: int, port: int, work: Work, on_gpus: bool, answer_seconds: float
) -> None:
    os.dup2(os.open(folder / str(rank), os.O_CREAT | os.O_WRONLY), 2)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    variables = {"RANK": rank, "WORLD_SIZE": SIZE, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": SIZE}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    liveness._REPORT_SECONDS, liveness._ANSWER_SECONDS = 0.2, answer_seconds
    if on_gpus:
        distributed._join = _join_as_on_gpus
    torch.set_num_threads(1)
    with distributed_session(RuntimeConfig(device="cpu", collective_timeout=TIMEOUT)) as ranks:
        work(ranks)


_join = distributed._join


def _join_as_on_gpus(*arguments: object) -> tuple[dist.Store, dist.ProcessGroup]:
    store, _ = _join(*arguments)  # pyright: ignore[reportArgumentType]
    return store, dist.new_group(backend="gloo")


def do_steps(ranks: DistributedContext, at_step_4: Callable[[], None]) -> None:
    """Six steps; rank 1 calls ``at_step_4`` while it loads images."""
    for step in range(1, 7):
        with ranks.step_deadline:
            ranks.progress.enter_step(step, "loading images")
            if step == 4 and ranks.rank == 1:
                time.sleep(0.5)  # it reports this position
                at_step_4()
            ranks.progress.enter_step(step, "backward pass")
            ranks.sum(torch.zeros(1))
        ranks.progress.enter_step(step, "done")


def end_by(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def hang() -> None:
    time.sleep(1000)
