"""Which ranks are named when others are lost, and how the process ends."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch.distributed as dist

from pipeline.errors import LOST_EXIT_CODE, USER_ERROR_EXIT_CODE
from pipeline.runtime import liveness
from pipeline.runtime.joint_exit import step_deadline
from pipeline.runtime.liveness import LivenessBoard, answer_in_time


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
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    store.set("failed", failed_rank)
    store.set("host/0", "node")
    board = LivenessBoard(store, 1, 2)
    deadline = step_deadline(store, 1, board, 600)
    with pytest.raises(Ended, match=str(code)):
        deadline._give_up()
    message = capsys.readouterr().err
    if code == LOST_EXIT_CODE:
        assert "rank 1 lost the other ranks (a step took more than 600 s" in message
        assert "no answer from rank 0 on node" in message
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
    board = LivenessBoard(store, 1, 2)
    store.set("here/0", "")
    assert answer_in_time(lambda: store.check(["here/0"]), otherwise=False)
    assert board.unresponsive() == ""
    cut.set()
    begin = time.monotonic()
    assert not answer_in_time(lambda: store.check(["here/0"]), otherwise=False)
    assert "the network is down" in board.unresponsive()
    assert time.monotonic() - begin < 5
