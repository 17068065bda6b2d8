"""Rendezvous at start-up.

In: the ranks' store. Out: the part of it that only this run's processes use.
"""

import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.errors import first_few


def fresh_store(store: Store, rank: int, size: int, timeout: float) -> Store:
    """A part of the store that holds nothing from processes that have ended.

    torchrun's store continues to exist when workers end. After a restart it still contains the
    addresses of the previous workers, and new ones would connect to them. No counter identifies a
    restart, because torchrun counts restarts for each node. So each rank publishes a random nonce,
    and rank 0 replies under that nonce with the prefix of this start.

    Raises:
        RuntimeError: a rank did not connect within ``timeout`` seconds; rank 0's error names it.
    """
    if rank > 0:
        nonce = uuid.uuid4().hex
        store.set(f"hello/{rank}", nonce)
        prefix = store.get(f"welcome/{nonce}").decode()
        store.set(f"{prefix}/{rank}", "")
        return PrefixStore(prefix, store)
    prefix, begin = uuid.uuid4().hex, time.monotonic()
    missing, answered_nonces = set(range(1, size)), set()
    while missing:
        for other_rank in sorted(missing):
            if store.check([f"{prefix}/{other_rank}"]):
                missing.discard(other_rank)
            elif store.check([f"hello/{other_rank}"]):
                # It may be the nonce of an ended worker, so the key is read again next time.
                nonce = store.get(f"hello/{other_rank}").decode()
                if nonce not in answered_nonces:
                    answered_nonces.add(nonce)
                    store.set(f"welcome/{nonce}", prefix)
        if missing and time.monotonic() - begin > timeout:
            ranks = first_few([str(missing_rank) for missing_rank in sorted(missing)])
            raise RuntimeError(f"rank {ranks} did not connect")
        time.sleep(0.01)
    return PrefixStore(prefix, store)
