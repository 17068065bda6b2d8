"""Rendezvous at start-up, and finding unresponsive ranks after a failed collective.

In: the ranks' store. Out: the part of it that only this run's processes use; a clause that names
the ranks that do not answer.
"""

import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.errors import first_few

_ANSWER_SECONDS = 10.0  # the other ranks' collectives fail at about the same time
STORE_SECONDS = 1.5 * _ANSWER_SECONDS
_NO_STORE = "; the ranks' store does not answer: its process has ended, or the network is down"

Answer = TypeVar("Answer")


def answer_in_time(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """Call the store after a collective has failed.

    If the network is down, a call waits for an answer that does not come, and no time limit of
    the store applies to it.

    Args:
        ask: the call.
        otherwise: the result after `STORE_SECONDS` without an answer, or if the process that
            serves the store has ended.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def put_answer() -> None:
        with suppress(RuntimeError):
            answers.put(ask())

    thread = threading.Thread(target=put_answer, name="store", daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return otherwise if answers.empty() else answers.get()


def fresh_store(store: Store, rank: int, size: int, timeout: float) -> Store:
    """A part of the store that holds nothing from processes that have ended.

    torchrun's store continues to exist when workers end. After a restart it still contains the
    addresses of the previous workers, and new ones would connect to them. No counter identifies a
    restart, because torchrun counts restarts for each node. So each rank publishes a random nonce,
    and rank 0 replies under that nonce with the prefix of this start.

    Raises:
        RuntimeError: a rank did not connect within ``timeout`` seconds; rank 0's error names it.
    """
    if rank > 0:
        nonce = uuid.uuid4().hex
        store.set(f"hello/{rank}", nonce)
        prefix = store.get(f"welcome/{nonce}").decode()
        store.set(f"{prefix}/{rank}", "")
        return PrefixStore(prefix, store)
    prefix, begin = uuid.uuid4().hex, time.monotonic()
    missing, answered_nonces = set(range(1, size)), set()
    while missing:
        for other in sorted(missing):
            if store.check([f"{prefix}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                # It may be the nonce of an ended worker, so the key is read again next time.
                nonce = store.get(f"hello/{other}").decode()
                if nonce not in answered_nonces:
                    answered_nonces.add(nonce)
                    store.set(f"welcome/{nonce}", prefix)
        if missing and time.monotonic() - begin > timeout:
            ranks = first_few([str(other) for other in sorted(missing)])
            raise RuntimeError(f"rank {ranks} did not connect")
        time.sleep(0.01)
    return PrefixStore(prefix, store)


class LivenessBoard:
    """Keys in the ranks' store that running ranks set after a collective has failed."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        if size > 1:
            store.set(f"host/{rank}", socket.gethostname())

    def unresponsive(self) -> str:
        """Set this rank's key, wait for the others', and name the ranks whose key is missing.

        Returns:
            A clause to append to a message; empty if no rank is missing.
        """
        return answer_in_time(self._unresponsive, _NO_STORE)

    def _unresponsive(self) -> str:
        self._store.set(f"here/{self._rank}", "")
        begin = time.monotonic()
        while True:
            missing = [r for r in range(self._size) if not self._store.check([f"here/{r}"])]
            if len(missing) <= 1 or time.monotonic() - begin > _ANSWER_SECONDS:
                break
            time.sleep(0.1)
        hosts = [self._store.get(f"host/{rank}").decode() for rank in missing]
        if not missing:
            return ""
        names = [f"rank {rank} on {host}" for rank, host in zip(missing, hosts, strict=True)]
        return f"; no answer from {first_few(names)}"
