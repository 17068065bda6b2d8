"""Reports of the ranks to each other, and the search for lost ranks after a failed collective.

In: the ranks' store, and the progress of this rank. Out: clauses that name the ranks that do not
answer or are behind.
"""

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

from pipeline.runtime.agent import agent_has_ended
from pipeline.runtime.lost_ranks import (
    RankReport,
    describe_positions,
    describe_silent,
    slurm_clause,
)
from pipeline.runtime.oom_kills import OomKills
from pipeline.runtime.process_scope import SCOPE, has_ended
from pipeline.runtime.progress import Progress

_REPORT_SECONDS = 1.0
_ANSWER_SECONDS = 4.0  # a rank without a report for so long does not answer
STORE_SECONDS = 15.0

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
    """Reports of all ranks in their store: one key for each rank, which its thread sets every
    second.

    So a step costs no request, and a slow or lost store delays no step. A rank whose process has
    ended or is stopped does not report; a rank that waits or is slow does.
    """

    def __init__(self, store: Store, rank: int, size: int, progress: Progress) -> None:
        """Begin to report, if there are other ranks.

        Args:
            store: of the ranks.
            rank: of this process.
            size: number of ranks.
            progress: of this rank.
        """
        self._store, self._rank, self._size, self._progress = store, rank, size, progress
        # All ranks come here at the same time, when they have joined. Seconds since then can be
        # compared between hosts whose clocks differ.
        self._begin = time.monotonic()
        self._host, self._oom_kills = socket.gethostname(), OomKills()
        self._has_answered = False
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._report_regularly, name="report", daemon=True)
        if size > 1:
            self._report()
            self._thread.start()

    def close(self) -> None:
        """End the reports; Python would abort if it ended while the thread calls the store."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(STORE_SECONDS)

    def find_lost(self) -> str:
        """Name the ranks that do not answer, or else those that are behind.

        It takes `_ANSWER_SECONDS` if a rank does not answer, unless its process has ended on this
        host, and `STORE_SECONDS` if the store does not answer.

        Returns:
            Clauses to append to a message.
        """
        return answer_in_time(self._find_lost, "") or self._describe_lost_store()

    def wait_for_readers(self) -> None:
        """Keep the store until the other ranks have found the lost ones, too, if this rank serves
        it: `_ANSWER_SECONDS`."""
        if self._rank == 0 and not _served_by_torchrun():
            time.sleep(_ANSWER_SECONDS)

    def _report_regularly(self) -> None:
        with suppress(RuntimeError):  # the process that serves the store has ended
            # Without torchrun, which may serve it, this rank stops; a report would print warnings.
            while not self._closed.wait(_REPORT_SECONDS) and not agent_has_ended():
                self._report()

    def _report(self) -> None:
        with self._sending:  # a later report must not be replaced by an earlier one
            position, now = self._progress.position, time.monotonic()
            report = RankReport(
                host=self._host,
                sent=now - self._begin,
                order=list(position.order),
                text=position.text,
                seconds=now - position.begin,
                has_answered=self._has_answered,
                num_oom_kills=self._oom_kills.number(),
                pid=os.getpid(),
                scope=SCOPE,
            )
            self._store.set(f"report/{self._rank}", json.dumps(report))

    def _read(self, ranks: Iterable[int]) -> dict[int, RankReport]:
        """The last reports of these ranks. One that ended while it started has none."""
        keys = {rank: f"report/{rank}" for rank in ranks}
        if not self._store.check(list(keys.values())):  # a read would wait for the missing ones
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        values = self._store.multi_get(list(keys.values())) if keys else []
        return {
            rank: RankReport(*json.loads(value)) for rank, value in zip(keys, values, strict=True)
        }

    def _find_lost(self) -> str:
        self._has_answered = True
        self._report()
        begin, silent = time.monotonic(), list(range(self._size))
        reports = first = self._read(silent)
        while True:
            silent = [rank for rank in silent if _is_silent(first.get(rank), reports.get(rank))]
            if not silent:
                return describe_positions(reports)
            ended = [rank for rank in silent if _has_ended(reports.get(rank))]
            if ended:
                return describe_silent(ended, reports, time.monotonic() - self._begin)
            if time.monotonic() - begin > _ANSWER_SECONDS:
                return describe_silent(silent, reports, time.monotonic() - self._begin)
            time.sleep(_REPORT_SECONDS / 10)
            reports = reports | self._read(silent)

    def _describe_lost_store(self) -> str:
        host = os.environ.get("MASTER_ADDR", "its host")
        server = "torchrun" if _served_by_torchrun() else "rank 0"
        return (
            f"; the ranks' store on {host} does not answer: {server} has ended there, or the "
            f"network is down (this rank: {self._progress.position.text}){slurm_clause()}"
        )


def _served_by_torchrun() -> bool:
    """Whether the store is torchrun's. Otherwise it is in the process of rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _has_ended(report: RankReport | None) -> bool:
    """Whether a rank on this host has ended before a collective has failed on it, too."""
    return report is not None and not report.has_answered and has_ended(report.pid, report.scope)


def _is_silent(first: RankReport | None, last: RankReport | None) -> bool:
    """Whether a rank has not reported since a collective has failed on this one.

    It is no comparison of times, so it does not depend on the hosts' clocks.
    """
    if last is None:
        return True
    return not last.has_answered and first is not None and first.sent == last.sent
