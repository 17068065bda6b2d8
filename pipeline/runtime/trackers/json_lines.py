"""metrics.jsonl: one line for each record of numbers, always written."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import warn
from pipeline.runtime.files import name_in_errors
from pipeline.runtime.metrics_file import drop_lines_after

from .base import TrackedRun, Tracker

_FILE_NAME = "metrics.jsonl"
_NOT_VALUES = ("step", "time")


class JsonLines(Tracker):
    """Writes metrics.jsonl."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the file, and remove its lines after the step from which the run resumes."""
        self._path = run.folder / _FILE_NAME
        warn(drop_lines_after(self._path, run.step, run.evaluated))
        self._file = self._path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        line = {"step": step, "time": time.time(), **values}
        with name_in_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Nothing: lines hold numbers only."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Nothing: lines hold numbers only."""

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: summary.json contains them."""

    def close(self, _failed: bool, /) -> None:
        """Close the file."""
        with name_in_errors(self._path):
            self._file.close()


def read_lines(folder: Path, last_step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The steps and the numbers in the metrics.jsonl of a folder, up to ``last_step``.

    Lines up to it must be whole; a later line may be written meanwhile.
    """
    with (folder / _FILE_NAME).open() as file:
        for text in file:
            if not text.endswith("\n"):
                return
            line = json.loads(text)
            if line["step"] > last_step:
                return
            yield line["step"], {n: v for n, v in line.items() if n not in _NOT_VALUES}
