"""Calls a tracker in a thread, so that a slow or lost service neither delays nor ends a run."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline.errors import first_line, is_disk_error, warn

from .base import Tracker

_MAX_WAITING = 10_000  # records; later ones are dropped while the service does not take them
_CLOSE_SECONDS = 60  # at the end, for what is left
_HURRIED_SECONDS = 15  # the same after a signal, an error, or failed calls: a job must save and end

_Call = Callable[[Tracker], None]


class Background(Tracker):
    """Passes records to a tracker that another thread opens and calls.

    The first error prints a warning. Records of calls that failed are missing in the service, and
    all are if it cannot be opened. Only the error of a full disk is raised, by the next call.
    """

    def __init__(self, name: str, folder: Path, open_tracker: Callable[[], Tracker]) -> None:
        """Start the thread.

        Args:
            name: of the service, for messages.
            folder: of the run, for errors of a full disk.
            open_tracker: creates the tracker; called in the thread.
        """
        self._name, self._folder = name, folder
        # Calls, and whether the thread ends after them.
        self._calls: queue.Queue[tuple[Sequence[_Call], bool]] = queue.Queue(_MAX_WAITING)
        self._final_calls: list[_Call] = []
        self._disk_error: OSError | None = None
        self._disk_full = self._warned = False
        self._thread = threading.Thread(target=self._work, args=(open_tracker,), daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Pass numbers on."""
        self._put(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Pass a picture on; pixels: (H, W, 3), uint8."""
        self._put(lambda tracker: tracker.image(step, name, pixels))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Pass a distribution on; values: (N,)."""
        self._put(lambda tracker: tracker.histogram(step, name, values))

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep metrics for `close`, which waits where records are dropped."""
        self._raise_disk_error()
        self._final_calls.append(lambda tracker: tracker.final_metrics(step, metrics))

    def close(self, failed: bool, /) -> None:
        """Wait until the service has all records, for a limited time."""
        calls = [*self._final_calls, lambda tracker: tracker.close(failed)]
        seconds = _HURRIED_SECONDS if failed or self._warned else _CLOSE_SECONDS
        deadline = time.monotonic() + seconds
        with suppress(queue.Full):
            self._calls.put((calls, True), timeout=seconds)
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            self._warn(f"does not respond, and lacks about {self._calls.qsize()} records")
        self._raise_disk_error()

    def _put(self, call: _Call) -> None:
        self._raise_disk_error()
        try:
            self._calls.put_nowait(([call], False))
        except queue.Full:
            self._warn("takes no records, so they are dropped")

    def _work(self, open_tracker: Callable[[], Tracker]) -> None:
        """Open the tracker, and do the calls."""
        tracker: Tracker | None = None
        with self._handle_errors():
            tracker = open_tracker()
        is_last = False
        while not is_last:
            calls, is_last = self._calls.get()
            for call in calls:
                if tracker is not None and not self._disk_full:
                    with self._handle_errors():
                        call(tracker)

    @contextmanager
    def _handle_errors(self) -> Iterator[None]:
        """Keep the error of a full disk for the next call; warn of others."""
        try:
            yield
        except Exception as error:
            disk_error = _disk_error_in(error)
            if disk_error is None:
                self._warn(f"failed ({first_line(error)})")
                return
            disk_error.filename = disk_error.filename or str(self._folder)
            self._disk_error, self._disk_full = disk_error, True

    def _warn(self, problem: str) -> None:
        """Print the first problem; the later ones are usually the same."""
        if not self._warned:
            self._warned = True
            warn(f"{self._name} {problem}; the run continues, and metrics.jsonl is complete")

    def _raise_disk_error(self) -> None:
        error, self._disk_error = self._disk_error, None
        if error is not None:
            raise error


def _disk_error_in(error: BaseException | None) -> OSError | None:
    """The error of a full disk that an error is or was caused by."""
    while error is not None:
        if isinstance(error, OSError) and is_disk_error(error):
            return error
        error = error.__cause__ or error.__context__
    return None
