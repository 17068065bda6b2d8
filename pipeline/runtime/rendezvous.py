"""Who is there: at the start, and when a collective has failed.

In: the ranks' store. Out: the part of it that belongs to these processes; a clause that names
whoever does not answer.
"""

import socket
import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store

_PATIENCE = 10.0  # seconds: the others' collective fails about when this rank's does


def fresh_store(store: Store, rank: int, size: int, patience: float) -> Store:
    """A part of the store that only the processes that live now know of.

    torchrun's store outlives its workers, so after ``--max-restarts`` it still holds what the dead
    ones wrote, and connections would be made to them. Nothing else tells starts apart: torchrun's
    count of restarts is each node's own. So each rank shows a word that it made up, and rank 0
    answers to the word.

    Raises:
        RuntimeError: a rank did not come for ``patience`` seconds; rank 0's names it.
    """
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"hello/{rank}", word)
        start = store.get(f"welcome/{word}").decode()
        store.set(f"{start}/{rank}", "")
        return PrefixStore(start, store)
    start, begin = uuid.uuid4().hex, time.monotonic()
    awaited, welcomed = set(range(1, size)), set()
    while awaited:
        for other in sorted(awaited):
            if store.check([f"{start}/{other}"]):
                awaited.discard(other)
            elif store.check([f"hello/{other}"]):
                word = store.get(f"hello/{other}").decode()  # maybe a dead one's: look again
                if word not in welcomed:
                    welcomed.add(word)
                    store.set(f"welcome/{word}", start)
        if awaited and time.monotonic() - begin > patience:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(awaited)[:8]))} did not come")
        time.sleep(0.01)
    return PrefixStore(start, store)


class LivenessBoard:
    """A list in the ranks' store that those who are alive sign when a collective has failed."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        if size > 1:
            store.set(f"host/{rank}", socket.gethostname())

    def unresponsive(self) -> str:
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
