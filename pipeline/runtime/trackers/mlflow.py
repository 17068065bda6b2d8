"""Records a run in MLflow.

MLflow keeps every value of a step that is recorded twice, and cannot remove one. So a resumed run
asks for the last step of each metric, and skips what is recorded.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.tracking import mlflow_address, mlflow_uri
from pipeline.runtime.files import atomic_create, write_json

from .base import Options, Service, TrackedRun
from .pictures import draw_histogram

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_IN_NAMES = re.compile(r"[^\w.\-/ :]")  # characters that MLflow refuses
_PARAMETERS_AT_ONCE = 100  # MLflow's limits
_LONGEST_VALUE = 6000


class Mlflow(Service):
    """A run in MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        """Start the run, or continue the one that OUTPUT/mlflow.json names."""
        super().__init__({})
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # without the tables it makes
        uri, path = mlflow_uri(run.folder), run.folder / "mlflow.json"
        _create_database(uri)
        self._client = MlflowClient(uri)
        stored = json.loads(path.read_text()) if run.resumes and path.exists() else {}
        address = mlflow_address(uri)
        self._continues = mlflow_address(stored.get("tracking_uri", "")) == address
        if self._continues:
            self._run_id = stored["run_id"]
            self._client.update_run(self._run_id, "RUNNING")
        else:
            experiment = _experiment(self._client, run, uri)
            self._run_id = self._client.create_run(experiment, run_name=run.name).info.run_id
        write_json(path, {"tracking_uri": address, "run_id": self._run_id})
        self._record_options(run.options)

    def _record_options(self, options: Options) -> None:
        """Record options; those of the first start stay, because MLflow refuses to change them."""
        from mlflow.entities import Param

        recorded = self._client.get_run(self._run_id).data.params
        params = [
            Param(name, str(value)[:_LONGEST_VALUE])
            for name, value in options.items()
            if name not in recorded
        ]
        for begin in range(0, len(params), _PARAMETERS_AT_ONCE):
            part = params[begin : begin + _PARAMETERS_AT_ONCE]
            self._client.log_batch(self._run_id, params=part)

    def last_step(self, name: str) -> int:
        """The last step of a metric; in a run that continues, MLflow is asked once."""
        if self._continues and name not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self.mark(max((metric.step for metric in history), default=-1), name)
        return super().last_step(name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record those of the numbers that are not recorded yet."""
        from mlflow.entities import Metric

        values = {_NOT_IN_NAMES.sub("_", name): value for name, value in values.items()}
        new_values = self.unrecorded(step, values)
        now = round(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in new_values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self.mark(step, *new_values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Store a picture, under a name that a repeated step replaces; pixels: (H, W, 3), uint8."""
        name = _NOT_IN_NAMES.sub("_", name)
        self._client.log_image(self._run_id, pixels, artifact_file=f"{name}/step-{step:09d}.png")

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Store a picture of a distribution; values: (N,). MLflow has no histograms."""
        self.image(step, name, draw_histogram(values, name))

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics as scalars; the run has its options since its start."""
        self.scalars(step, metrics)

    def close(self, failed: bool, /) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _database(uri: str) -> Path | None:
    """The file of an SQLite database; None for other stores."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path).absolute() if path not in (uri, "", ":memory:") else None


def _create_database(uri: str) -> None:
    """Create MLflow's tables under a temporary name, if there is no database yet.

    MLflow creates them one by one, and does not continue if a process was killed meanwhile.
    """
    from mlflow import MlflowClient

    database = _database(uri)
    if database is None or database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with atomic_create(database) as partial:
        MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)


def _experiment(client: "MlflowClient", run: TrackedRun, uri: str) -> str:
    """The id of the experiment, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    name = run.tracking.project_name("MLFLOW_EXPERIMENT_NAME")
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    database = _database(uri)  # artifacts are stored next to it, not in the working folder
    location = (database.parent / "mlflow").as_uri() if database else None
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:  # another run has created it meanwhile
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id
