"""Records a run in TensorBoard."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.errors import is_disk_error
from pipeline.runtime.files import name_in_errors

from .base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Writes OUTPUT/tensorboard."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the files; TensorBoard hides what they have after the step of a resumed run."""
        self._folder, self._options = run.folder / "tensorboard", run.options
        _hide_disk_errors_of_threads()
        with name_in_errors(self._folder):
            self._board = SummaryWriter(self._folder, purge_step=run.step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record a point of each number."""
        with name_in_errors(self._folder):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record a picture; pixels: (H, W, 3), uint8."""
        with name_in_errors(self._folder):
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Record a distribution; values: (N,)."""
        with name_in_errors(self._folder):
            self._board.add_histogram(name, values, step)

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Enter the run with its options into the table of hyper-parameters."""
        with name_in_errors(self._folder):
            writer = self._board.file_writer
            assert writer is not None, "until the board is closed"
            for summary in hparams(dict(self._options), dict(metrics)):
                writer.add_summary(summary)
        self.scalars(step, metrics)  # the table reads its values from these

    def close(self, _failed: bool, /) -> None:
        """Write what is left."""
        with name_in_errors(self._folder):
            self._board.close()


def _hide_disk_errors_of_threads() -> None:
    """Do not print tracebacks of full disks from threads. TensorBoard's thread passes the error to
    the next call of its writer, which reports it."""
    if not isinstance(threading.excepthook, _HideDiskErrors):
        threading.excepthook = _HideDiskErrors(threading.excepthook)


class _HideDiskErrors:
    """A hook for errors of threads. It passes all errors to the previous hook, except those of a
    full disk."""

    def __init__(self, hook: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._hook = hook

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        if not is_disk_error(arguments.exc_value):
            self._hook(arguments)
