"""Signals that ask a run to stop."""

import signal
from typing import Any


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGUSR2, so that a run can finish its step, save and leave.

    Attributes:
        signals: those that this process has received.
    """

    signals: set[int] = set()

    def __init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._receive)

    @property
    def received(self) -> bool:
        """Whether there was any."""
        return bool(self.signals)

    def _receive(self, number: int, _: Any) -> None:
        self.signals.add(number)
