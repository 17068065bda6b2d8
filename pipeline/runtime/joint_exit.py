"""The end of a rank after an error: which rank prints, and with which code each one exits.

In: the error of this rank, and the ranks' store. Out: a message, and the exit of the process.
"""

import os
import sys
import threading
import time
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from pipeline.errors import (
    LOST_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    UserError,
    disk_message,
    first_line,
    is_disk_error,
)
from pipeline.runtime.allocator import is_out_of_memory
from pipeline.runtime.liveness import LivenessBoard, answer_in_time
from pipeline.runtime.step_deadline import StepDeadline

LESS_MEMORY = (
    "use --regularizer.max_images auto, a larger train.gradient_accumulation_steps, a smaller "
    "evaluation.batch_size, or runtime.precision bf16"
)

_ending = threading.Lock()


def exit_alone(message: str) -> NoReturn:
    """Print an error that only this rank may have, before the ranks have joined, and exit."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR_EXIT_CODE) from None


def exit_after(
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


def step_deadline(store: Store, rank: int, liveness: LivenessBoard, seconds: int) -> StepDeadline:
    """A limit of ``seconds`` for a step, after which the process ends with a message."""

    def give_up() -> None:
        if _another_failed(store, rank):
            os._exit(USER_ERROR_EXIT_CODE)
        reason = f"a step took more than {seconds} s, runtime.collective_timeout"
        _exit_lost(rank, reason, liveness)

    return StepDeadline(seconds, give_up)


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


def _exit_lost(rank: int, reason: str, liveness: LivenessBoard) -> NoReturn:
    """Print that other ranks are lost, and which; exit at once."""
    with _ending:  # a collective may fail while the thread of the step's limit is here
        print(
            f"error: rank {rank} lost the other ranks ({reason}){liveness.find_lost()}; rerun the "
            "same command to resume from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        liveness.wait_for_readers()
        os._exit(LOST_EXIT_CODE)  # the process group's threads may still wait for the lost rank


def _another_failed(store: Store, rank: int) -> bool:
    """Whether a collective failed because another rank has printed an error and exited."""
    own = str(rank)
    return answer_in_time(
        lambda: store.check(["failed"]) and store.get("failed").decode() != own, otherwise=False
    )
