"""What three ranks print when one of them is killed, stops, hangs or is slow."""

import re
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.runtime.distributed import DistributedContext
from tests.helpers.rank_processes import TIMEOUT, do_steps, end_by, hang, run_ranks

HOST = re.escape(socket.gethostname())
LOADING, WAITING = "step 4, loading images", "step 4, backward pass"
BEHIND = rf"; all ranks report; behind: rank 1 on {HOST} \(last progress [2-9] s ago: {LOADING}\); "
RERUN = "; rerun the same command to resume from the last checkpoint"


def undisturbed(ranks: DistributedContext) -> None:
    do_steps(ranks, lambda: None)


def killed(ranks: DistributedContext) -> None:
    do_steps(ranks, partial(end_by, signal.SIGKILL))


def stopped(ranks: DistributedContext) -> None:
    do_steps(ranks, partial(end_by, signal.SIGSTOP))


def hanging(ranks: DistributedContext) -> None:
    do_steps(ranks, hang)


def slow(ranks: DistributedContext) -> None:
    do_steps(ranks, partial(time.sleep, TIMEOUT + 0.2))


def evaluating(ranks: DistributedContext) -> None:
    """Rank 1 needs longer for its share."""
    for number in (0, 20, 40):
        ranks.progress.count_images(number)
        if ranks.rank == 1 and number == 20:
            time.sleep(30)
    ranks.progress.end_evaluation()
    ranks.gather(None)


def without_rank_0(ranks: DistributedContext) -> None:
    """It serves the store if there is no torchrun."""
    ranks.progress.enter_step(7, "backward pass")
    if ranks.rank == 0:
        end_by(signal.SIGKILL)
    ranks.barrier()


def hanging_on_gpus(ranks: DistributedContext) -> None:
    """The others wait for the GPU, which no error interrupts."""
    with ranks.step_deadline:
        ranks.progress.enter_step(4, "loading images")
        if ranks.rank != 1:
            ranks.progress.enter_step(4, "backward pass")
        hang()


def assert_lost(ends: dict[int, str], clauses: str) -> None:
    """These ranks have ended with code 3 and one line of their own."""
    for rank, end in ends.items():
        assert end.startswith("3 "), end
        (line,) = re.findall(r"(?m)^(?:3 )?(error: .*)$", end)
        expected = rf"error: rank {rank} lost the other ranks \(.+\){clauses}{RERUN}"
        assert re.fullmatch(expected, line), end


def test_ranks_that_nothing_disturbs(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, undisturbed) == {0: "0 ", 1: "0 ", 2: "0 "}


@pytest.mark.slow
def test_a_rank_that_stops(tmp_path: Path) -> None:
    name = rf"rank 1 on {HOST} \(last report [1-9] s ago: {LOADING}\)"
    assert_lost(run_ranks(tmp_path, stopped, [0, 2]), f"; no answer from {name}; others: {WAITING}")


@pytest.mark.slow
def test_a_rank_that_ends(tmp_path: Path) -> None:
    """Its process is looked up, so nobody waits for its reports: not 10 s."""
    name = rf"rank 1 on {HOST} \(last report \d s ago: {LOADING}\)"
    ends = run_ranks(tmp_path, killed, [0, 2], answer_seconds=10)
    assert_lost(ends, f"; no answer from {name}; others: {WAITING}")


@pytest.mark.slow
def test_a_rank_that_hangs(tmp_path: Path) -> None:
    assert_lost(run_ranks(tmp_path, hanging, [0, 2]), f"{BEHIND}others: {WAITING}")


def test_a_rank_that_hangs_while_others_wait_for_a_gpu(tmp_path: Path) -> None:
    """With NCCL all ranks' limits for the step end at the same time, also that of the culprit."""
    ends = run_ranks(tmp_path, hanging_on_gpus, on_gpus=True)
    assert_lost(ends, f"{BEHIND}others: {WAITING}")
    assert all("runtime.collective_timeout" in end for end in ends.values())


def test_a_rank_that_is_slow(tmp_path: Path) -> None:
    """It comes to the collective after the others have given up."""
    ends = run_ranks(tmp_path, slow)
    late = {1: ends.pop(1)}
    assert_lost(ends, f"{BEHIND}others: {WAITING}")
    assert_lost(late, rf"; all ranks report, at the same point \({WAITING}\)")


@pytest.mark.slow
def test_a_rank_that_evaluates_for_longer(tmp_path: Path) -> None:
    behind = BEHIND.replace(LOADING, "20 images evaluated")
    ends = run_ranks(tmp_path, evaluating, [0, 2])
    assert_lost(ends, f"{behind}others: all its images evaluated")


@pytest.mark.slow
def test_rank_0_serves_the_store(tmp_path: Path) -> None:
    store = "the ranks' store on 127.0.0.1 does not answer: rank 0 has ended there, or the network"
    where = r"\(this rank: step 7, backward pass\)"
    ends = run_ranks(tmp_path, without_rank_0, [1, 2])
    assert_lost(ends, f"; {store} is down {where}")
