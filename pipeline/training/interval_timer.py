"""A clock for one interval of training."""

import time
from collections.abc import Callable


def _no_waiting() -> float:
    return 0.0


class IntervalTimer:
    """Measures the time since it was started last, and the part of it spent waiting for data."""

    def __init__(self, total_waited: Callable[[], float] = _no_waiting) -> None:
        """Start the timer.

        Args:
            total_waited: returns the seconds that were spent waiting for data so far, in total.
        """
        self._total_waited = total_waited
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._begin = time.perf_counter()
        self._waited_before = self._total_waited()

    @property
    def seconds(self) -> float:
        """Length of the interval so far."""
        return time.perf_counter() - self._begin

    @property
    def waited_seconds(self) -> float:
        """Seconds of the interval that were spent waiting for data."""
        return self._total_waited() - self._waited_before
