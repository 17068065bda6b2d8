"""Faults inside a rank, each started by a signal of its own.

`tools/chaos.py` puts this folder on PYTHONPATH of the commands that it tests. Python imports the
module before any other. The project itself contains no code for faults.
"""

import ctypes
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

EXCEPTION_SIGNAL = signal.SIGRTMIN + 8
LOCK_SIGNAL = signal.SIGRTMIN + 9
CLOCK_SIGNAL = signal.SIGRTMIN + 10
CLOCK_JUMP_SECONDS = 3 * 3600
_FOREVER = 10**9  # seconds


def _raise_exception(_number: int, _frame: FrameType | None) -> None:
    raise RuntimeError("an exception on purpose, by tools/chaos.py")


def _hold_interpreter_lock(_number: int, _frame: FrameType | None) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(_FOREVER)  # functions of a PyDLL keep the lock


def _jump_clock(_number: int, _frame: FrameType | None) -> None:
    """The wall clock as Python reads it is three hours ahead."""
    clock = time.time
    time.time = lambda: clock() + CLOCK_JUMP_SECONDS


def _import_hidden_module() -> None:
    """Import the sitecustomize of the environment, which this one hides."""
    own_folder = Path(__file__).parent
    folders = [folder for folder in sys.path if Path(folder).resolve() != own_folder]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", folders)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if "FAULT_CAMPAIGN" in os.environ:
    signal.signal(EXCEPTION_SIGNAL, _raise_exception)
    signal.signal(LOCK_SIGNAL, _hold_interpreter_lock)
    signal.signal(CLOCK_SIGNAL, _jump_clock)
    _import_hidden_module()
