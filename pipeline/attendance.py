"""Which rank the others wait for in vain.

In: the ranks' store. Out: a clause that names whoever does not answer. Costs nothing until a
collective has failed.
"""

import socket
import time

import torch.distributed as dist

_PATIENCE = 10.0  # seconds: the others' collective fails about when this rank's does


class Attendance:
    """A list in the ranks' store that those who are alive sign when a collective has failed."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        if size > 1:
            store.set(f"host/{rank}", socket.gethostname())

    def missing(self) -> str:
        """Sign, wait for the others, and name those who did not; empty if it cannot be told."""
        try:
            self._store.set(f"here/{self._rank}", "")
            begin = time.monotonic()
            while True:
                missing = [r for r in range(self._size) if not self._store.check([f"here/{r}"])]
                if len(missing) <= 1 or time.monotonic() - begin > _PATIENCE:
                    break
                time.sleep(0.1)
            hosts = [self._store.get(f"host/{rank}").decode() for rank in missing[:8]]
        except RuntimeError:  # whoever serves the store is gone
            return ""
        if not missing:
            return ""
        named = (f"rank {rank} on {host}" for rank, host in zip(missing, hosts, strict=False))
        return f"; no answer from {', '.join(named)}"
