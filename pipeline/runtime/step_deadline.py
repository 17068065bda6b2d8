"""A time limit for a step on a GPU, where lost ranks leave the host waiting.

A collective operation with a lost rank stays in the GPU's queue. The next time that the host waits
for the GPU, it waits in a call that cannot be interrupted, and NCCL's own thread would abort the
process without a word. So a thread of this process ends it, after a message.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType


class StepDeadline:
    """A context: after ``seconds`` in it, a thread calls ``give_up``.

    An error that leaves the context does not end the limit: what is freed on the way out may wait
    for the GPU too, and the GPU for a lost rank. The next step sets a new limit.

    The thread runs while the main thread waits in CUDA, since that releases Python's lock.
    """

    def __init__(self, seconds: float, give_up: Callable[[], object]) -> None:
        self._seconds, self._give_up = seconds, give_up
        self._changed = threading.Condition()
        self._deadline: float | None = None  # None: outside of the context
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._set(time.monotonic() + self._seconds)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="step deadline", daemon=True)
            self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._set(None)

    def _set(self, deadline: float | None) -> None:
        with self._changed:
            wakes_up = self._deadline is None  # else the thread looks again when it is time
            self._deadline = deadline
            if wakes_up:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._deadline is None or time.monotonic() < self._deadline:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                self._changed.wait(left)
        self._give_up()
