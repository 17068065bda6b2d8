"""The CPU, its cores, limits and versions of packages, on which a run depends."""

import os
import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path

_GPU_NAME = re.compile(r"\b(NVIDIA|Tesla|Quadro|GeForce|TITAN)\b")


def is_gpu_name(device: str) -> bool:
    """Whether a device's name, as results record it, is that of a GPU."""
    return _GPU_NAME.search(device) is not None


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def allow_open_files(number: int) -> None:
    """Raise this process's limit of open files to ``number``, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "deep-defense-pipeline")
    by_name = {"python": platform.python_version()}
    for name in packages:
        try:
            by_name[name] = version(name)
        except ModuleNotFoundError:  # DALI has other names for other CUDA versions
            continue
    return by_name


def cpu_name() -> str:
    """The CPU's model name, as lscpu prints it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
