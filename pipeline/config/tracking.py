"""Options of where a run is recorded."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .checks import Section, require

Tracker = Literal["tensorboard", "wandb", "mlflow"]

_DEFAULT_PROJECT = "deep-defense"


@dataclass(kw_only=True)
class TrackingConfig(Section):
    """Where the numbers and pictures of a run are recorded. metrics.jsonl is always written."""

    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """tensorboard; wandb: Weights & Biases (WANDB_MODE=offline records without a login); mlflow:
    MLflow (MLFLOW_TRACKING_URI; without it OUTPUT/mlflow.db); several as [tensorboard, wandb]."""
    project: str | None = None
    """Project in Weights & Biases, and experiment in MLflow. Default: WANDB_PROJECT and
    MLFLOW_EXPERIMENT_NAME, else deep-defense."""
    name: str | None = None
    """Name of the run in Weights & Biases and MLflow. Default: WANDB_NAME, else the last two parts
    of OUTPUT, as runs/r18."""

    def check(self) -> None:
        """Refuse empty names."""
        for option in ("project", "name"):
            require(getattr(self, option) != "", option, "a name", "''")

    def project_name(self, variable: str) -> str:
        """The project; ``variable`` is the environment variable of the service that names it."""
        return self.project or os.environ.get(variable) or _DEFAULT_PROJECT

    def run_name(self, folder: Path) -> str:
        """The name of the run in ``folder``."""
        default = "/".join(folder.absolute().parts[-2:])
        return self.name or os.environ.get("WANDB_NAME") or default


def mlflow_uri(folder: Path) -> str:
    """The store of MLflow: MLFLOW_TRACKING_URI, or a database in the folder of the run."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def is_local_store(uri: str) -> bool:
    """Whether a store of MLflow consists of files, which `mlflow ui` shows without a login."""
    is_path = "://" not in uri and not uri.startswith("databricks")
    return is_path or uri.startswith(("sqlite:///", "file:///"))


def mlflow_address(uri: str) -> str:
    """The URI of a store of MLflow, to be shown and stored. That of a server is without the user
    and the query, which may contain passwords."""
    if is_local_store(uri):
        return uri
    return re.sub("://.*@", "://", uri).partition("?")[0]
