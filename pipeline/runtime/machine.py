"""What the numbers and times of a run depend on: the CPU, its cores, versions of packages."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "deep-defense-pipeline")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # DALI has other names for other CUDA versions
            continue
    return found


def cpu_name() -> str:
    """The CPU's model name, as lscpu has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
