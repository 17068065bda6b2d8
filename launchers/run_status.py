"""submission.json: which job a run's folder belongs to; and how far that run is.

In: folders. Out: `Submission`s and `Progress`.
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.runtime.files import write_json
from pipeline.runtime.json_checks import LIST, NOTHING, NUMBER, TEXT, Kinds, lacking

if TYPE_CHECKING:  # launchers/jobs.py is to answer at once
    import submitit

NAME = "submission.json"
_KINDS: Kinds = {
    **dict.fromkeys(("kind", "cluster", "host"), TEXT),
    **dict.fromkeys(("jobs", "logs"), LIST),
    "joined_by": TEXT + NOTHING,
    "submitted": NUMBER,
}
_REQUIRED = ("kind", "cluster", "jobs", "logs")
_PROGRESS: Kinds = {"doing": TEXT, **dict.fromkeys(("done", "total", "per_second"), NUMBER)}
_RATE = "train/images_per_second"
_INSIDE = {"code", "jobs", "checkpoints", "results", "tensorboard"}  # of a run: no runs in there


@dataclass(frozen=True)
class Submission:
    """What was submitted for one folder."""

    folder: Path
    kind: str  # finetune, evaluate or report
    cluster: str
    jobs: list[str]  # a job, or a task of an array; on this machine, processes
    logs: list[str]  # of the first task of each
    joined_by: str | None = None  # the job that joins an evaluation's shards
    host: str = dataclasses.field(default_factory=socket.gethostname)  # that submitted
    submitted: float = dataclasses.field(default_factory=time.time)  # seconds since 1970

    @classmethod
    def of(cls, folder: Path, kind: str, cluster: str, job: "submitit.Job[None]") -> "Submission":
        """Of a folder that one job writes."""
        return cls(folder, kind, cluster, [job.job_id], [str(job.paths.stdout)])

    def write(self) -> None:
        """Into its folder."""
        write_json(self.folder / NAME, dataclasses.asdict(self) | {"folder": str(self.folder)})


def read(path: Path) -> Submission:
    """The submission.json of a folder that may have been moved since.

    Raises:
        UserError: it is damaged.
    """
    values = _json(path)
    # Of an older launcher: what has a default may be missing.
    kinds = {name: kind for name, kind in _KINDS.items() if name in values or name in _REQUIRED}
    damaged = lacking(values, kinds) or not values["jobs"]
    if damaged or not all(isinstance(name, str) for name in values["jobs"] + values["logs"]):
        raise UserError(f"{path} is damaged; remove it")
    return Submission(folder=path.parent, **{name: values[name] for name in kinds})


def find(roots: Iterable[Path]) -> list[Submission]:
    """Every submission in and below these folders, oldest first."""
    paths = {path.resolve() for root in roots for path in _below(root)}
    return sorted((read(path) for path in paths), key=lambda each: (each.submitted, each.folder))


def _below(root: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name not in _INSIDE]
        if NAME in files:
            yield Path(folder) / NAME


@dataclass(frozen=True)
class Progress:
    """How far a run is; None where it has not said."""

    doing: str = ""  # training or evaluating
    done: int | None = None  # steps, or images
    total: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    rho: float | None = None  # rho2, or that of another norm, the last measured
    at: str = ""  # the training step of an evaluation, as "step 24/48"


def progress(submission: Submission) -> Progress:
    """Read from what the run wrote."""
    folder = submission.folder
    if submission.kind == "report":
        return Progress()
    of_training = submission.kind == "finetune"
    summary = _json(folder / "summary.json")
    parts = [_json(path) for path in _progress_files(folder)]
    parts = [part for part in parts if not lacking(part, _PROGRESS)]
    metrics = _bytes(folder / "metrics.jsonl") if of_training else b""
    rho = _rho(_last(metrics, b'"evaluation/') or summary)
    if not parts:
        return Progress(rho=rho)
    trained = _last(metrics, _RATE.encode())
    rates = [part["per_second"] for part in parts]
    left = [(p["total"] - p["done"]) / p["per_second"] for p in parts if p["per_second"] > 0]
    return Progress(
        parts[-1]["doing"],
        sum(part["done"] for part in parts),
        sum(part["total"] for part in parts),
        sum(rates) if parts[-1]["doing"] == "evaluating" else trained.get(_RATE),
        max(left, default=None),
        rho,
        parts[-1].get("at", ""),
    )


def _progress_files(folder: Path) -> list[Path]:
    """A run writes one; an evaluation one for each shard."""
    whole = folder / "progress.json"
    return [whole] if whole.exists() else sorted(folder.glob("results/*/progress.json"))


def _rho(values: dict[str, Any]) -> float | None:
    named = (value for name, value in values.items() if name.split("/")[-1].startswith("rho"))
    return next((value for value in named if isinstance(value, int | float)), None)


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or damaged."""
    return _object(_bytes(path))


def _object(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _last(lines: bytes, having: bytes) -> dict[str, Any]:
    """The last whole JSON line that has these bytes; evaluations may lie far back."""
    place = lines.rfind(having, 0, lines.rfind(b"\n") + 1)
    if place < 0:
        return {}
    return _object(lines[lines.rfind(b"\n", 0, place) + 1 : lines.find(b"\n", place)])
