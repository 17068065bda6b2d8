"""Appends results to JSON lines, one file a rank, as images finish.

A kill can cut only the last line short, which the next job drops.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.result_lines import result_line
from pipeline.evaluation.samples import Example, Samples
from pipeline.runtime.files import atomic_write, name_in_errors
from pipeline.runtime.lock import try_lock


class ResultsAppender:
    """Appends results to one JSON-lines file, which is flushed each time."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = self._path = folder / f"rank{rank}.jsonl"
        self._examples = folder / "examples"
        self._file = path.open("a")
        if not try_lock(self._file):
            raise UserError(
                f"another process is writing {path}; wait for it, end it, or give another --output"
            )
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)

    def append(self, samples: Samples, ids: list[str]) -> None:
        """Write results and flush them to the operating system."""
        columns = {name: column.tolist() for name, column in samples.to_dict().items()}
        with name_in_errors(self._path):
            for position, image_id in enumerate(ids):
                values = {name: column[position] for name, column in columns.items()}
                self._file.write(result_line({"id": image_id, **values}))
            self._file.flush()

    def skip(self, rows: Iterable[int], ids: Iterable[str]) -> None:
        """Record images that did not decode."""
        with name_in_errors(self._path):
            for row, image_id in zip(rows, ids, strict=True):
                self._file.write(result_line({"id": image_id, "row": row, "skipped": True}))
            self._file.flush()

    def store_examples(self, examples: list[Example]) -> None:
        """Store perturbations for the contact sheet."""
        for example in examples:
            path = self._examples / f"{example.row}.npz"
            with atomic_write(path) as partial, partial.open("wb") as file:
                classes = np.array([example.before, example.after])
                np.savez(file, image=example.image, delta=example.delta, classes=classes)

    def __enter__(self) -> "ResultsAppender":
        return self

    def __exit__(self, *_: Any) -> None:
        with name_in_errors(self._path):
            self._file.close()
