"""Which processes this process can look up by their number, and whether they have ended."""

import hashlib
import os
import socket
import uuid
from pathlib import Path


def _scope() -> str:
    """Short hash that is equal for processes that can look each other up by number.

    A host name alone is not enough: containers and virtual machines share names.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux: a scope with this process only
        return uuid.uuid4().hex[:12]
    name = f"{socket.gethostname()} {boot} {namespace}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]


SCOPE = _scope()


def has_ended(pid: int, scope: str) -> bool:
    """Whether a process is known to have ended; False for one that cannot be looked up.

    Args:
        pid: its number.
        scope: its `SCOPE`.
    """
    if scope != SCOPE:
        return False
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # a running process of another user; or it ends just now
        return False
    return state in "ZX"  # it has ended, and its parent has not asked for its exit code
