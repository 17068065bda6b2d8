"""Several ranks: equal weights, the cost of the all-reduce, and a rank that is killed."""

import json
import os
import signal
import socket
import time

import torch

from gpu_checks.check import Record, Setup, Skip
from gpu_checks.processes import (
    FINETUNE,
    TORCHRUN,
    ProcessFailed,
    Started,
    run_options,
    start,
    wait_for_step,
)

CPU_RANKS = 2  # of gloo, with --device cpu
# The sums of a step have another order, and DeepFool enlarges the last bits. A missing or doubled
# all-reduce changes the update by a half and more.
UPDATE_LIMIT = 0.02
COLLECTIVE_TIMEOUT = 30  # seconds, as runtime.collective_timeout
ANSWER_SECONDS = 40  # for the ranks' search of the missing one, and their end


def num_ranks(setup: Setup) -> int:
    """One rank for each GPU, or two on a CPU.

    Raises:
        Skip: without --multi, or with one GPU only.
    """
    if not setup.multi:
        raise Skip("needs --multi")
    number = torch.cuda.device_count() if setup.on_gpu else CPU_RANKS
    if number < 2:
        raise Skip(f"needs two GPUs; torch sees {number}")
    return number


def equal_weights(setup: Setup, record: Record) -> None:
    """A few steps on every rank, by NCCL (on a CPU gloo): weights and the all-reduce's cost."""
    number, path = num_ranks(setup), setup.folder / "ranks.json"
    arguments = ["-m", "gpu_checks.rank_worker", "--device", setup.device.type, "--json", path]
    if setup.size.small:
        arguments.append("--small")
    ranks = (*TORCHRUN, f"--nproc_per_node={number}", *arguments)
    start(path.with_suffix(".log"), *ranks).wait(setup.process_seconds)
    results = json.loads(path.read_text())
    record.note("ranks", number)
    record.equal("ranks with other weights than rank 0", len(set(results["digests"])) - 1, 0)
    record.true("weights finite", results["finite"])
    record.at_most(
        "difference from one process, relative to the update", results["difference"], UPDATE_LIMIT
    )
    seconds = results["seconds"]
    for name in ("plain", "boundary"):
        reduced, alone = seconds[f"{name}, all-reduce"], seconds[f"{name}, no_sync"]
        record.note(f"{name}: seconds of a step", reduced)
        record.note(f"{name}: time with the all-reduce, without it = 1", reduced / alone)


def killed_rank(setup: Setup, record: Record) -> None:
    """The last rank is killed: the others end in time, and name it.

    The ranks are started without torchrun, which would end the others itself.
    """
    number = num_ranks(setup)
    folder = setup.folder / "runs" / "killed"
    ranks = _start_ranks(setup, number)
    try:
        wait_for_step(ranks[0], folder, 2, setup.process_seconds)
        os.kill(ranks[-1].process.pid, signal.SIGKILL)
        begin = time.monotonic()
        outputs, codes = [], []
        for rank in ranks[:-1]:
            left = begin + COLLECTIVE_TIMEOUT + ANSWER_SECONDS - time.monotonic()
            outputs.append(rank.wait(max(left, 1.0), expected=None))
            codes.append(rank.process.returncode)
    except ProcessFailed as error:
        record.fail("the other ranks end", str(error))
        return
    finally:
        for rank in ranks:
            rank.kill()
    record.note("seconds until the others have ended", time.monotonic() - begin)
    record.equal("ranks that ended without an error", codes.count(0), 0)
    record.note("exit codes", ", ".join(map(str, codes)))
    name = f"rank {number - 1} on {socket.gethostname()}"
    record.true("the killed rank is named", any(name in text for text in outputs))


def _start_ranks(setup: Setup, number: int) -> list[Started]:
    folder = setup.folder / "runs" / "killed"
    options = run_options(
        setup,
        folder,
        *("--train.batch_size", str(50 * number)),  # divisible by the ranks
        *("--runtime.collective_timeout", str(COLLECTIVE_TIMEOUT)),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            folder.with_name(f"killed-{rank}.log"),
            FINETUNE,
            *options,
            **common,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(number)
    ]
