"""The jobs that write a run's folder (submission.json), and the progress of the run.

In: folders. Out: `Submission`s and `RunProgress`.
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
from pipeline.runtime.json_checks import LIST, NOTHING, NUMBER, TEXT, Kinds, schema_problem

if TYPE_CHECKING:  # submitit is slow to import, and launchers/jobs.py must answer quickly
    import submitit

FILE_NAME = "submission.json"
_KINDS: Kinds = {
    **dict.fromkeys(("kind", "cluster", "host"), TEXT),
    **dict.fromkeys(("jobs", "logs"), LIST),
    "joined_by": TEXT + NOTHING,
    "submitted": NUMBER,
}
_REQUIRED = ("kind", "cluster", "jobs", "logs")
_PROGRESS: Kinds = {"doing": TEXT, **dict.fromkeys(("done", "total", "per_second"), NUMBER)}
_RATE = "train/images_per_second"
# Folders inside a run's folder, which contain no runs.
_NOT_SEARCHED = {"code", "jobs", "checkpoints", "results", "tensorboard", "wandb", "mlflow"}


@dataclass(frozen=True)
class Submission:
    """The jobs that were submitted for one folder."""

    folder: Path
    kind: str  # finetune, evaluate or report
    cluster: str  # slurm, local or debug
    jobs: list[str]  # ids of jobs, or of tasks of an array; with --cluster local, of processes
    logs: list[str]  # for each job, the log of its first task
    joined_by: str | None = None  # id of the job that merges an evaluation's shards
    # The machine on which the jobs were submitted.
    host: str = dataclasses.field(default_factory=socket.gethostname)
    submitted: float = dataclasses.field(default_factory=time.time)  # seconds since 1970

    @classmethod
    def of(cls, folder: Path, kind: str, cluster: str, job: "submitit.Job[None]") -> "Submission":
        """The submission of a folder that a single job writes."""
        return cls(folder, kind, cluster, [job.job_id], [str(job.paths.stdout)])

    def write(self) -> None:
        """Write submission.json in the folder."""
        write_json(self.folder / FILE_NAME, dataclasses.asdict(self) | {"folder": str(self.folder)})


def read(path: Path) -> Submission:
    """Read a submission.json; its folder may have been moved since it was written.

    Raises:
        UserError: the file is damaged.
    """
    values = _read_json(path)
    # Older launchers did not write all of the fields that have a default.
    kinds = {name: kind for name, kind in _KINDS.items() if name in values or name in _REQUIRED}
    damaged = schema_problem(values, kinds) or not values["jobs"]
    if damaged or not all(isinstance(name, str) for name in values["jobs"] + values["logs"]):
        raise UserError(f"{path} is damaged; remove it")
    return Submission(folder=path.parent, **{name: values[name] for name in kinds})


def find_submissions(roots: Iterable[Path]) -> list[Submission]:
    """All submissions in and below these folders, oldest first."""
    paths = {path.resolve() for root in roots for path in _find_files(root)}
    submissions = [read(path) for path in paths]
    return sorted(submissions, key=lambda submission: (submission.submitted, submission.folder))


def _find_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_SEARCHED]
        if FILE_NAME in files:
            yield Path(folder) / FILE_NAME


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run; None means that the run has not written the value yet."""

    activity: str = ""  # training or evaluating
    num_done: int | None = None  # number of steps, or of images
    total: int | None = None  # number of steps, or of images
    images_per_second: float | None = None
    seconds_left: float | None = None
    rho: float | None = None  # the last measured rho2, or rho of another norm
    training_step: str = ""  # the step at which an evaluation takes place, as "step 24/48"


def read_progress(submission: Submission) -> RunProgress:
    """Read the progress from the files that the run writes."""
    folder = submission.folder
    if submission.kind == "report":
        return RunProgress()
    metrics = _read_bytes(folder / "metrics.jsonl") if submission.kind == "finetune" else b""
    rho = _rho_of(_last_with(metrics, b'"evaluation/') or _read_json(folder / "summary.json"))
    shards = [_read_json(path) for path in _progress_files(folder)]
    shards = [shard for shard in shards if not schema_problem(shard, _PROGRESS)]
    if not shards:
        return RunProgress(rho=rho)
    activity = shards[-1]["doing"]
    if activity == "evaluating":
        images_per_second = sum(shard["per_second"] for shard in shards)
    else:  # there, per_second counts steps
        images_per_second = _last_with(metrics, _RATE.encode()).get(_RATE)
    seconds_left = [
        (shard["total"] - shard["done"]) / shard["per_second"]
        for shard in shards
        if shard["per_second"] > 0
    ]
    return RunProgress(
        activity=activity,
        num_done=sum(shard["done"] for shard in shards),
        total=sum(shard["total"] for shard in shards),
        images_per_second=images_per_second,
        seconds_left=max(seconds_left, default=None),
        rho=rho,
        training_step=shards[-1].get("at", ""),
    )


def _progress_files(folder: Path) -> list[Path]:
    """The file of a run, or of each shard of an evaluation."""
    path = folder / "progress.json"
    return [path] if path.exists() else sorted(folder.glob("results/*/progress.json"))


def _rho_of(values: dict[str, Any]) -> float | None:
    """The first number whose name, without the part before the last slash, begins with rho."""
    rhos = (value for name, value in values.items() if name.split("/")[-1].startswith("rho"))
    return next((value for value in rhos if isinstance(value, int | float)), None)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    return _parse_json(_read_bytes(path))


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _last_with(lines: bytes, key: bytes) -> dict[str, Any]:
    """The last JSON line that contains these bytes; empty if there is none.

    Searches backwards in all lines, since many lines can follow the last evaluation. An incomplete
    line at the end is ignored.
    """
    position = lines.rfind(key, 0, lines.rfind(b"\n") + 1)
    if position < 0:
        return {}
    return _parse_json(lines[lines.rfind(b"\n", 0, position) + 1 : lines.find(b"\n", position)])
