"""Signals that ask a run to stop."""

import signal
from types import FrameType

# All that this process has received. A process may make several requests one after the other, and
# a signal that came during one of them still asks the next to stop.
_received: set[int] = set()


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGUSR2, so that a run can finish its step, save and exit.

    Attributes:
        signals: those that this process has received.
    """

    def __init__(self) -> None:
        self.signals: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._receive)
        self.signals |= _received  # last: until here an earlier request may have received one

    @property
    def received(self) -> bool:
        """Whether there was any."""
        return bool(self.signals)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.signals.add(number)
        _received.add(number)


def received_signals() -> frozenset[int]:
    """The signals that this process has received since its first `StopRequest`."""
    return frozenset(_received)
