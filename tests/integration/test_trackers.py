"""W&B, MLflow and TensorBoard show the same numbers and pictures of a run, each step once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.runtime.monitor import Monitor
from pipeline.runtime.trackers import background
from tests.helpers.in_process import EVALUATE, FINETUNE, call
from tests.helpers.runs import ROOT, environment, start
from tests.helpers.tiny import CLOCK, TINY, finetune, finished, kill_at_step, metric_rows
from tests.helpers.trackers import (
    Pictures,
    Scalars,
    mlflow_run,
    of_mlflow,
    of_tensorboard,
    of_wandb,
)

needs_services = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('wandb')"
    " or not __import__('importlib').util.find_spec('mlflow')",
    reason="needs the packages wandb and mlflow (extras wandb, mlflow)",
)
ALL = ("--tracking.trackers", "[tensorboard,wandb,mlflow]", "--log.panel_images", 2)
MLFLOW_ONLY = {"tracking": {"trackers": ["mlflow"]}}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves this machine, and nothing of its own set-up counts."""
    for name in list(os.environ):
        # W&B sets WANDB_SERVICE itself: the socket of its process.
        if name.startswith(("WANDB_", "MLFLOW_")) and name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of MLflow for several runs; making one takes seconds."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"
    MlflowClient(uri).search_experiments()
    return uri


def assert_alike(folder: Path, uri: str | None = None) -> None:
    """The three trackers have the same scalars (to TensorBoard's fp32) and the same pixels; of
    scalars that depend on the clock the same steps."""
    scalars, pictures = of_tensorboard(folder)
    assert scalars
    assert pictures
    for name, points in scalars.items():
        steps = [step for step, _ in points]
        assert len(steps) == len(set(steps)), f"TensorBoard has a step of {name} twice"
    for read in (of_wandb, lambda path: of_mlflow(path, uri)):
        assert_equal(read(folder), scalars, pictures)


def assert_equal(actual: tuple[Scalars, Pictures], scalars: Scalars, pictures: Pictures) -> None:
    other_scalars, other_pictures = actual
    assert other_scalars.keys() == scalars.keys()
    for name, points in scalars.items():
        assert [step for step, _ in other_scalars[name]] == [step for step, _ in points], name
        values = [value for _, value in other_scalars[name]]
        if name in CLOCK:  # a step that is done again takes another time
            continue
        assert values == pytest.approx([value for _, value in points], rel=1e-6), name
    assert pictures.keys() <= other_pictures.keys()  # MLflow also has pictures of distributions
    for key, pixels in pictures.items():
        assert (other_pictures[key] == pixels).all(), key


@needs_services
def test_a_resumed_run_has_each_step_once(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    often = (*ALL, "--log.every_steps", 1, "--checkpoint.every_steps", 5)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 9)
        # The process does not end here, so the trackers must have ended.
        patch.setattr(background, "_HURRIED_SECONDS", 120)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *often)
    assert metric_rows(tmp_path)[-1]["step"] == 9
    client, run_id = mlflow_run(tmp_path, database)
    assert client.get_run(run_id).info.status == "FAILED"
    ended = finished(tmp_path, *often)
    assert "step-000000006.pt, step 6" in ended.stdout  # of the evaluation
    assert_alike(tmp_path, database)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert len({path.name[-8:] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 1
    assert mlflow_run(tmp_path, database)[1] == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    assert run.info.run_name == f"{tmp_path.parent.name}/{tmp_path.name}"


@needs_services
def test_an_evaluation(tmp_path: Path, mlp_weights: Path) -> None:
    options = ("--model.weights", mlp_weights, "--evaluation.num_images", 60, *ALL[:2])
    ended = call(EVALUATE, *options, "--output", tmp_path, "--tracking.project", "digits")
    assert ended.code == 0, ended.stderr
    assert_alike(tmp_path)
    assert ("evaluate/ratio", 0) in of_mlflow(tmp_path)[1]
    client, run_id = mlflow_run(tmp_path)
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    assert experiment.name == "digits"
    # The merge tool records it again, as new runs.
    assert call("tools/report.py", "merge", tmp_path).code == 0
    assert mlflow_run(tmp_path)[1] != run_id
    assert_equal(of_mlflow(tmp_path), *of_tensorboard(tmp_path))


@needs_services
@pytest.mark.slow
def test_a_tracker_that_is_added_later_gets_the_numbers_so_far(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path)
    finished(tmp_path, "--tracking.trackers", "[tensorboard,mlflow]")
    assert_equal(of_mlflow(tmp_path, database), of_tensorboard(tmp_path)[0], {})


@needs_services
@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 16, 35])
def test_a_run_killed_by_the_system_has_each_step_once(tmp_path: Path, step: int) -> None:
    """W&B loses what its process has not written, and MLflow what has not reached it."""
    options = (*ALL, "--model.name", "tests.helpers.nets:slow_mlp", "--checkpoint.every_steps", 1)
    process = start(tmp_path, *options)
    wait_for_step(tmp_path, step, process.poll)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path, *options)
    assert process.wait(240) == 0
    scalars, _ = of_tensorboard(tmp_path)  # pictures on their way are lost with the process
    assert_equal((of_wandb(tmp_path)[0], {}), scalars, {})
    assert_equal((of_mlflow(tmp_path)[0], {}), scalars, {})


def wait_for_step(folder: Path, step: int, poll: Callable[[], int | None]) -> None:
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert poll() is None, "the run ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.002)


_KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from pipeline.runtime.monitor import Monitor

@event.listens_for(Engine, "after_cursor_execute")
def _kill(connection, cursor, statement, *others):
    if "CREATE TABLE secrets" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

options = {"tracking": {"trackers": ["mlflow"]}}
with Monitor(Path(sys.argv[1]), shown=True, step=-1, options=options) as monitor:
    monitor.scalars(0, "train", {"loss": 1.0})
"""


@needs_services
@pytest.mark.slow
def test_a_run_killed_while_mlflow_creates_its_tables(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED_RUN, tmp_path], env=environment())
    assert killed.returncode == -signal.SIGKILL
    with Monitor(tmp_path, shown=True, step=-1, options=MLFLOW_ONLY) as monitor:
        monitor.scalars(0, "train", {"loss": 1.0})
    assert of_mlflow(tmp_path)[0] == {"train/loss": [(0, 1.0)]}


@needs_services
@pytest.mark.slow
def test_a_service_that_cannot_be_reached_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ml:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = finished(tmp_path, "--tracking.trackers", "[mlflow]")
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert re.match(r"warning: MLflow failed \(.*127\.0\.0\.1.*\); the run continues", line)
    assert "curves:      MLflow at http://127.0.0.1:9" in ended.stdout.splitlines()
    assert "secret" not in ended.stdout + ended.stderr
    assert [row["step"] for row in metric_rows(tmp_path)][-1] == 18
    assert not (tmp_path / "tensorboard").exists()


@needs_services
def test_a_password_of_mlflow_is_not_stored(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is a database in a file, under the URI of a server."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    store, path = SqlAlchemyStore(database, tmp_path.as_uri()), tmp_path / "mlflow.json"
    builders = _tracking_store_registry._registry
    monkeypatch.setitem(builders, "postgresql", lambda store_uri, artifact_uri=None: store)

    def record(before: int, login: str, host: str) -> dict[str, str]:
        """Record the step after ``before``; what is stored then."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://{login}@{host}/mlflow")
        with Monitor(tmp_path, shown=True, step=before, options=MLFLOW_ONLY) as monitor:
            monitor.scalars(before + 1, "train", {"loss": 1.0})
        return json.loads(path.read_text())

    first = record(-1, "ml:secret", "db")
    assert first["tracking_uri"] == "postgresql://db/mlflow"
    assert record(0, "ml:changed", "db") == first
    earlier = {**first, "tracking_uri": "postgresql://ml:secret@db/mlflow"}  # of earlier versions
    path.write_text(json.dumps(earlier))
    assert record(1, "ml:changed", "db") == first
    history = store.get_metric_history(first["run_id"], "train/loss")
    assert [metric.step for metric in history] == [0, 1, 2]
    other = record(2, "ml:secret", "other")
    assert other["tracking_uri"] == "postgresql://other/mlflow"
    assert other["run_id"] != first["run_id"]


@needs_services
@pytest.mark.slow
def test_wandb_records_offline_where_it_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    process = start(tmp_path, *ALL[:1], "[tensorboard,wandb]")
    assert process.wait(240) == 0
    assert_equal(of_wandb(tmp_path), *of_tensorboard(tmp_path))


@needs_services
def test_a_missing_login_ends_in_one_line_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without a .netrc
    monkeypatch.setenv("WANDB_MODE", "online")
    import wandb

    wandb.teardown()  # it reads the environment once
    ended = finetune(tmp_path / "run", "--tracking.trackers", "[wandb]")
    wandb.teardown()
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: tracking.trackers wandb: there is no login; run wandb login")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("script", [FINETUNE, EVALUATE])
def test_a_missing_package_ends_in_one_line(
    tmp_path: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # Python then does not find it
    options = TINY if script == FINETUNE else ()
    ended = call(script, *options, "--output", tmp_path, "--tracking.trackers", f"[{name}]")
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert line == (
        f"error: tracking.trackers {name}: the package {name} is not installed; "
        f"pip install -e '.[{name}]'"
    )
    extras = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^{name} = \[", extras, re.MULTILINE)


def test_without_trackers_metrics_are_written(tmp_path: Path) -> None:
    ended = finished(tmp_path, "--tracking.trackers", "[]")
    assert ended.stdout.splitlines()[-1] == f"curves:      tail -F {tmp_path}/metrics.jsonl"
    assert not (tmp_path / "tensorboard").exists()
    steps = [row["step"] for row in metric_rows(tmp_path)]
    history = json.loads((tmp_path / "summary.json").read_text())["history"]
    assert {entry["step"] for entry in history} <= set(steps)
