"""Which ranks are named when others are lost, and how the process ends."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch.distributed as dist

from pipeline.errors import LOST_EXIT_CODE, USER_ERROR_EXIT_CODE
from pipeline.runtime import liveness
from pipeline.runtime.joint_exit import step_deadline
from pipeline.runtime.liveness import LivenessBoard, answer_in_time
from pipeline.runtime.lost_ranks import RankReport, describe_positions, describe_silent
from pipeline.runtime.progress import Progress


def report(host: str, **values: Any) -> RankReport:
    process = (1, "another host")
    usual = RankReport(host, 60.0, [1, 3, 1], "step 3, forward pass", 9.0, False, 0, *process)
    return usual._replace(**values)


class Ended(Exception):
    """Raised in place of an exit."""


@pytest.mark.parametrize(
    ("failed_rank", "code"), [("1", LOST_EXIT_CODE), ("0", USER_ERROR_EXIT_CODE)]
)
def test_a_step_that_takes_too_long_ends_the_process(
    failed_rank: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a message if another rank has printed one; a job must not be requeued for that."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(liveness, "_ANSWER_SECONDS", 0.2)
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    store.set("failed", failed_rank)
    store.set("report/0", json.dumps(report("node", text="step 7, forward pass")))
    board = LivenessBoard(store, 1, 2, Progress())
    deadline = step_deadline(store, 1, board, 600)
    with pytest.raises(Ended, match=str(code)):
        deadline._give_up()
    board.close()
    message = capsys.readouterr().err
    if code == LOST_EXIT_CODE:
        assert "rank 1 lost the other ranks (a step took more than 600 s" in message
        assert re.search(
            r"\); no answer from rank 0 on node \(last report \d s ago: step 7, forward pass\); o",
            message,
        )
    else:
        assert message == ""


@pytest.fixture
def cuttable_store() -> Iterator[tuple[dist.TCPStore, threading.Event]]:
    """A client of a store behind a connection that can be cut: bytes are then neither passed on nor
    refused, as in a network that is down."""
    cut, sockets = threading.Event(), []
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(4096):
            if not cut.is_set():
                target.sendall(data)

    def accept() -> None:
        inner = listener.accept()[0]
        outer = socket.create_connection(("127.0.0.1", server.port))
        sockets.extend((inner, outer))
        for pair in ((inner, outer), (outer, inner)):
            threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    yield dist.TCPStore("127.0.0.1", port, wait_for_workers=False), cut
    for connection in (*sockets, listener):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def test_a_store_behind_a_network_that_is_down(
    cuttable_store: tuple[dist.TCPStore, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cut = cuttable_store
    monkeypatch.setattr(liveness, "STORE_SECONDS", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "node7")
    store.set("report/0", json.dumps(report("node", has_answered=True)))
    progress = Progress()
    progress.enter_step(3, "backward pass")
    board = LivenessBoard(store, 1, 2, progress)
    assert answer_in_time(lambda: store.check(["report/0"]), otherwise=False)
    assert "; behind: rank 1 on" in board.find_lost()
    cut.set()
    begin = time.monotonic()
    assert not answer_in_time(lambda: store.check(["report/0"]), otherwise=False)
    assert board.find_lost() == (
        "; the ranks' store on node7 does not answer: rank 0 has ended there, or the network is "
        "down (this rank: step 3, backward pass)"
    )
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    message = board.find_lost()
    assert "torchrun has ended there" in message
    assert "; `sacct -j 12 " in message
    board.close()
    assert time.monotonic() - begin < 5


def test_a_store_that_does_not_answer_delays_no_step(
    cuttable_store: tuple[dist.TCPStore, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cut = cuttable_store
    monkeypatch.setattr(liveness, "_REPORT_SECONDS", 0.01)
    progress = Progress()
    board = LivenessBoard(store, 1, 2, progress)
    cut.set()
    time.sleep(0.1)  # some reports that nobody takes
    begin = time.monotonic()
    for step in range(1000):
        progress.enter_step(step, "forward pass")
    assert time.monotonic() - begin < 0.5
    board.close()


@pytest.mark.usefixtures("quick_reports")
def test_ranks_report_what_they_do() -> None:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    progress = [Progress() for _ in range(3)]
    boards = [LivenessBoard(store, rank, 3, progress[rank]) for rank in range(3)]
    for rank in (0, 2):
        progress[rank].enter_step(5, "backward pass")
    progress[1].enter_step(4, "done")
    host = socket.gethostname()
    assert re.fullmatch(
        rf"; all ranks report; behind: rank 1 on {host} \(last progress \d s ago: step 4, done\); "
        "others: step 5, backward pass",
        boards[0].find_lost(),
    )
    boards[1].close()  # as a process that has ended or is stopped
    assert re.fullmatch(
        rf"; no answer from rank 1 on {host} \(last report \d s ago: step 4, done\); "
        "others: step 5, backward pass",
        boards[2].find_lost(),
    )
    boards[1].find_lost()  # it was late, and ends now
    progress[1].enter_step(5, "backward pass")
    boards[1]._report()
    assert boards[2].find_lost() == (
        "; all ranks report, at the same point (step 5, backward pass)"
    )
    for board in boards:
        board.close()


@pytest.mark.usefixtures("quick_reports")
def test_a_rank_that_ended_before_its_first_report() -> None:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    board = LivenessBoard(store, 0, 2, Progress())
    assert board.find_lost() == "; no answer from rank 1; others: start of the run"
    board.close()


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_REPORT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "_ANSWER_SECONDS", 0.5)


OTHERS = "; others: step 3, forward pass"
SACCT = "; `sacct -j 77 --format=JobID,State,ExitCode,MaxRSS` shows how the tasks ended"


def test_causes_are_named_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = {rank: report("ab"[rank // 2], sent=60 - rank) for rank in range(4)}
    one = "; no answer from rank 1 on a (last report 41 s ago: step 3, forward pass)" + OTHERS
    assert describe_silent([1], reports, 100) == one
    killed = reports | {0: report("a", num_oom_kills=1), 3: report("b", num_oom_kills=2)}
    assert describe_silent([1], killed, 100) == (
        f"{one}; the kernel has killed a process on a because memory ran out"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert describe_silent([1], reports, 100) == one + SACCT


def test_a_lost_host_is_named_once() -> None:
    reports = {rank: report("ab"[rank // 2], sent=60 - rank) for rank in range(4)}
    reports[4] = report("c")
    assert describe_silent([2, 3, 4], reports, 100) == (
        "; no answer from all 2 ranks on b (last report 42 s ago: step 3, forward pass), "
        f"rank 4 on c (last report 40 s ago: step 3, forward pass){OTHERS}; b or the network may "
        "be down"
    )


def test_long_lists_are_cut() -> None:
    reports = {rank: report(f"n{rank}") for rank in range(9)}
    assert describe_silent(list(range(1, 8)), reports, 60).endswith(
        f"rank 4 on n4 (last report 0 s ago: step 3, forward pass), and 3 more{OTHERS}"
    )
    behind = reports | {rank: report(f"n{rank}", order=[1, 2, 1]) for rank in (5, 6)}
    assert describe_positions(behind) == (
        "; all ranks report; behind: rank 5 on n5 (last progress 9 s ago: step 3, forward pass), "
        "rank 6 on n6 (last progress 9 s ago: step 3, forward pass); others: step 3, forward pass"
    )
