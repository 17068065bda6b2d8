"""torchrun's agent: the process that has started this rank; restarts.

Imported before torch, so that the agent is known even if it ends while a rank imports torch.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import LOST_EXIT_CODE

_POLL_SECONDS = 0.5
_AGENT = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def agent_has_ended() -> bool:
    """Whether torchrun has ended, which leaves its ranks running: nobody could stop them."""
    return _AGENT is not None and os.getppid() != _AGENT


@contextmanager
def exit_with_agent() -> Iterator[None]:
    """End this process if torchrun ends during the block.

    For the time in which the ranks connect: torchrun serves their store, and torch waits for a
    store that does not answer for minutes, in a call that cannot be interrupted.
    """
    if _AGENT is None:
        yield
        return
    is_connected = threading.Event()
    threading.Thread(target=_watch, args=(is_connected,), name="agent", daemon=True).start()
    try:
        yield
    finally:
        is_connected.set()


def _watch(is_connected: threading.Event) -> None:
    while not is_connected.wait(_POLL_SECONDS):
        if agent_has_ended():
            print(
                "error: torchrun has ended before its ranks were connected; rerun the same command",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST_EXIT_CODE)


def restarted() -> bool:
    """Whether torchrun or SLURM restarted this run. A restart resumes from the newest results;
    ``--resume`` applies to the first start only."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)
