"""The CPU, its cores, limits and versions of packages, on which a run depends."""

import os
import platform
import re
import resource
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

COMMIT_FILE = "commit.txt"  # beside the packages, in a copy of the code
_GPU_NAME = re.compile(r"\b(NVIDIA|Tesla|Quadro|GeForce|TITAN)\b")


def is_gpu_name(device: str) -> bool:
    """Whether a device's name, as results record it, is that of a GPU."""
    return _GPU_NAME.search(device) is not None


def affinity() -> tuple[int, ...]:
    """The numbers of the cores that this process may use, sorted."""
    get_affinity = getattr(os, "sched_getaffinity", None)
    return tuple(sorted(get_affinity(0) if get_affinity else range(os.cpu_count() or 1)))


def cores() -> int:
    """Number of cores that this process may use."""
    return len(affinity())


def allow_open_files(number: int) -> None:
    """Raise this process's limit of open files to ``number``, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on, and the commit of this
    project, if it runs from a git checkout."""
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "deep-defense-pipeline")
    by_name = {"python": platform.python_version()}
    for name in packages:
        try:
            by_name[name] = version(name)
        except ModuleNotFoundError:  # DALI has other names for other CUDA versions
            continue
    if revision := commit():
        by_name["commit"] = revision
    return by_name


@cache
def commit() -> str:
    """The git commit of this project, with "-dirty" behind it if tracked files have changed.

    Of a copy that a launcher has made, the commit of the original. Empty if it is not known.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        try:
            return (root / COMMIT_FILE).read_text().strip()
        except OSError:
            return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # many ranks call it at the same time
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """The CPU's model name, as lscpu prints it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
