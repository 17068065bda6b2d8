"""A process in which torch counts one CUDA device, without a driver.

torch's autograd engine has a thread for each device that c10::cuda::device_count() reports, and
asks the driver whether the device has a context. A library of two functions answers both. It is put
in front of torch's own (LD_PRELOAD) when the process starts. The count is zero until
`pretended_cuda.pretend` sets it, so imports see a machine without a GPU.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.runs import ROOT, environment

DEVICE_COUNT = "pretended_device_count"
_SOURCE = f"""
char {DEVICE_COUNT};
char _ZN3c104cuda12device_countEv(void) {{ return {DEVICE_COUNT}; }}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
    {{ *flags = *active = 0; return 0; }}
"""
_TIMEOUT = 900  # seconds, for a machine that does other work


def why_not() -> str | None:
    """Why no such process can be started here; None if it can."""
    import torch  # not at the top: the command line of pretended_runs.py starts faster

    if torch.version.cuda is None:
        return "needs a CUDA build of torch, for its dispatch keys and its autocast"
    if shutil.which("cc") is None:
        return "needs a C compiler (cc)"
    return None


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` with the library."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "shim.c", Path(folder) / "shim.so"
        source.write_text(_SOURCE)
        # torch opens the driver by this name, and gets the library that has it already.
        name = "-Wl,-soname,libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", name, "-o", library, source], check=True)
        preload = f"{library} {os.environ.get('LD_PRELOAD', '')}".strip()
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            # A real GPU would be asked for what the library does not answer.
            env=environment() | {"LD_PRELOAD": preload, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
