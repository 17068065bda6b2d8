"""Finding unresponsive ranks after a failed collective.

In: the ranks' store. Out: a clause that names the ranks that do not answer.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

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
