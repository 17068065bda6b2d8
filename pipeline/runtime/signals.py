"""Signals that stop a run."""

import signal
from types import FrameType

from pipeline.runtime.agent import agent_has_ended

# All signals that this process has received. A process may create several `StopRequest`s one after
# the other; a signal that arrives during one of them applies to the next ones too.
_received: set[int] = set()


class StopRequest:
    """Records SIGTERM, SIGINT and SIGUSR2, so that a run can finish its step, save and exit. A rank
    whose torchrun was killed stops in the same way.

    Attributes:
        signals: the signals that this process has received.
    """

    def __init__(self) -> None:
        self.signals: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._receive)
        self.signals |= _received  # last, because an earlier request receives signals until here

    @property
    def received(self) -> bool:
        """Whether a signal was received, or torchrun has ended without one."""
        return bool(self.signals) or agent_has_ended()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.signals.add(number)
        _received.add(number)


def received_signals() -> frozenset[int]:
    """The signals that this process has received since its first `StopRequest`."""
    return frozenset(_received)
