"""The trackers of a run, by the options ``tracking``."""

from functools import partial
from importlib.util import find_spec

from pipeline.config import TrackingConfig
from pipeline.errors import UserError

from .background import Background
from .base import Service, TrackedRun, Tracker
from .json_lines import JsonLines, read_lines

_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_NAMES = {"wandb": "W&B", "mlflow": "MLflow"}


def check_trackers(tracking: TrackingConfig) -> None:
    """Refuse trackers that cannot be used, before a run starts.

    Raises:
        UserError: a package is not installed, or there is no login; names the remedy.
    """
    for name in tracking.trackers:
        for package in _PACKAGES.get(name, ()):
            if not _is_installed(package):
                raise UserError(
                    f"tracking.trackers {name}: the package {package} is not installed; "
                    f"pip install -e '.[{name}]'"
                )
    if "wandb" in tracking.trackers:
        from .wandb import check_login

        check_login()


def open_trackers(run: TrackedRun) -> list[Tracker]:
    """Open metrics.jsonl and the trackers that the options name."""
    trackers: list[Tracker] = [JsonLines(run)]
    for name in dict.fromkeys(run.tracking.trackers):
        if name == "tensorboard":
            from .tensorboard import TensorBoard

            trackers.append(TensorBoard(run))
        else:
            open_tracker = partial(_open_service, name, run)
            trackers.append(Background(_NAMES[name], run.folder, open_tracker))
    return trackers


def _open_service(name: str, run: TrackedRun) -> Service:
    """Open a service, and give it the numbers up to the run's step that it lacks: it was not used
    so far, or a kill came before it had them."""
    if name == "wandb":
        from .wandb import Wandb as Opened
    else:
        from .mlflow import Mlflow as Opened
    service: Service = Opened(run)
    for step, values in read_lines(run.folder, run.step):
        service.scalars(step, values)
    return service


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, such as OUTPUT/wandb, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
