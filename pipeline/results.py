"""Per-image results: columns in memory, JSON lines as they come, Parquet at the end.

Rows are keyed by image id. A results folder belongs to one evaluation, told by its `identity`:
the index, the weights and the definition of rho2. JSON lines survive a kill at any moment but for
a torn last line, which is dropped.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.distributed import Ranks
from pipeline.errors import UserError

Row = dict[str, Any]

_MANIFEST = "identity.json"


@dataclass(frozen=True)
class Samples:
    """Results of N images, in columns."""

    row: np.ndarray  # (N,) int64, row of the index
    label: np.ndarray  # (N,) int64
    prediction: np.ndarray  # (N,) int64, at the clean image
    image_norm: np.ndarray  # (N,) float64, ||x||_2 in the network's input space
    perturbation_norm: np.ndarray  # (N,) float64, ||dx||_2
    steps: np.ndarray  # (N,) int64, DeepFool iterations
    flipped: np.ndarray  # (N,) bool

    @classmethod
    def concat(cls, parts: Iterable["Samples"]) -> "Samples":
        """Join parts, sorted by row."""
        parts = list(parts)
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        by_row = np.argsort(columns["row"], kind="stable")
        return cls(**{name: column[by_row] for name, column in columns.items()})

    @classmethod
    def empty(cls) -> "Samples":
        """No results yet."""
        kinds = {"image_norm": float, "perturbation_norm": float, "flipped": bool}
        return cls(**{f.name: np.zeros(0, kinds.get(f.name, np.int64)) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.row)

    def summary(self) -> dict[str, Any]:
        """Accuracy, rho2 and counts.

        rho2 is the mean of ||dx||_2 / ||x||_2 over every sample; those that never flipped count
        with their perturbation so far, and their number is given.
        """
        ratio = self.perturbation_norm / self.image_norm
        return {
            "accuracy": float(np.mean(self.prediction == self.label)),
            "rho2": float(np.mean(ratio)),
            "num_samples": len(self),
            "num_unflipped": int(np.sum(~self.flipped)),
            "mean_steps": float(np.mean(self.steps)),
        }


def check_complete(samples: Samples, rows: np.ndarray, skipped: int) -> None:
    """Hold the results against the rows that were to be evaluated, each exactly once."""
    unique = np.unique(samples.row)
    assert len(unique) == len(samples), "an image was evaluated twice"
    assert len(samples) + skipped == len(rows), "an image was not evaluated"
    assert np.isin(unique, rows).all(), "an image outside the plan was evaluated"


def write_samples(path: Path, samples: Samples, ids: pa.ChunkedArray) -> None:
    """Write samples.parquet: id, label, prediction, the norms, steps, flipped."""
    columns = {f.name: getattr(samples, f.name) for f in fields(Samples) if f.name != "row"}
    table = pa.table({"id": ids.take(pa.array(samples.row)), **columns})
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(partial, path)


class ResultsFolder:
    """Results appended as they are found, one file a rank, so that an evaluation can go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(
        cls, folder: Path, resume: str, identity: dict[str, Any], ranks: Ranks
    ) -> "ResultsFolder":
        """Begin a folder, or go on with one.

        Args:
            folder: where this run's results belong.
            resume: ``auto``, ``never``, or another results folder to go on in.
            identity: what tells this evaluation from others.
            ranks: the first writes the manifest once all have looked.

        Raises:
            UserError: the folder holds the results of another evaluation, or ``resume`` is not
                possible.
        """
        if resume not in ("auto", "never"):
            folder = Path(resume)
            if not (folder / _MANIFEST).is_file():
                raise UserError(f"resume: {folder} is not auto, never or a folder of results")
        elif resume == "never" and folder.exists():
            raise UserError(f"resume is never, but {folder} exists; give another --output")
        if (folder / _MANIFEST).exists():
            cls._compare(folder, identity)
        ranks.barrier()
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _MANIFEST, identity)
        return cls(folder)

    @staticmethod
    def _compare(folder: Path, identity: dict[str, Any]) -> None:
        found = json.loads((folder / _MANIFEST).read_text())
        changed = [
            f"{key}: {found.get(key)} there, {identity.get(key)} here"
            for key in sorted(found.keys() | identity.keys())
            if found.get(key) != identity.get(key)
        ]
        if changed:
            raise UserError(
                f"{folder} holds results of another evaluation ({'; '.join(changed)}); "
                "give another --output"
            )

    def read(self) -> Samples:
        """All results so far, of every rank; a row found twice counts once."""
        rows: dict[int, Row] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    values = json.loads(line)
                    rows[values["row"]] = values
        if not rows:
            return Samples.empty()
        dtypes = Samples.empty()
        columns = {
            f.name: np.array([r[f.name] for r in rows.values()], getattr(dtypes, f.name).dtype)
            for f in fields(Samples)
        }
        return Samples.concat([Samples(**columns)])

    def appender(self, rank: int) -> "Appender":
        """Where a rank appends; a torn last line of an earlier run is dropped."""
        return Appender(self._folder / f"rank{rank}.jsonl")


class Appender:
    """Appends results to one JSON-lines file, a flush each batch."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            data = path.read_bytes()
            os.truncate(path, data.rfind(b"\n") + 1)
        self._file = path.open("a")

    def append(self, samples: Samples, ids: list[str]) -> None:
        """Write a batch and hand it to the operating system."""
        columns = {f.name: getattr(samples, f.name).tolist() for f in fields(Samples)}
        for number, image_id in enumerate(ids):
            values = {name: column[number] for name, column in columns.items()}
            self._file.write(json.dumps({"id": image_id, **values}) + "\n")
        self._file.flush()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
