"""Counts the processes that the kernel has killed because memory ran out (cgroup v1 and v2).

The exit code of a killed rank is known to torchrun or SLURM only. The counters of the control group
can be read by the other ranks on the same host.
"""

import re
from contextlib import suppress
from pathlib import Path

_SLURM_JOB = re.compile(r".*/job_\d+(?=/|$)")  # the group of all tasks of a job on this host
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The kills in the control group of this process, since this object was created.

    Under SLURM these are the kills in all groups of the job on this host, since each task has a
    group of its own.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """Read the counters.

        Args:
            root: the folder with ``proc`` and ``sys``.
        """
        self._values = dict.fromkeys(_counter_files(root), 0)
        self._before = self._total()

    def number(self) -> int:
        """Number of processes that were killed; 0 if the counters cannot be read."""
        return self._total() - self._before

    def _total(self) -> int:
        for path in self._values:
            with suppress(OSError):  # a group may be removed with its task: keep the last value
                counter = _OOM_KILLS.search(path.read_text())
                self._values[path] = int(counter[1]) if counter else 0
        return sum(self._values.values())


def _counter_files(root: Path) -> list[Path]:
    """The files with the counters; none if there is no control group for memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    # hierarchy:controllers:path; version 2 has no controllers here.
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    mount = root / "sys/fs/cgroup"
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):  # version 1: without groups inside
            folder, is_job = _folder_of(mount / "memory", path)
            return sorted(folder.glob(f"{'**/' * is_job}memory.oom_control"))
    folder, _ = _folder_of(mount, groups.get("", "/"))
    return sorted(folder.glob("memory.events"))


def _folder_of(mount: Path, path: str) -> tuple[Path, bool]:
    """The folder of a group, and whether it is that of a job of SLURM."""
    job = _SLURM_JOB.match(path)
    folder = mount / (job[0] if job else path).lstrip("/")
    if folder.is_dir():
        return folder, job is not None
    return mount, False  # in a container the path may be the host's, and the mount the group
