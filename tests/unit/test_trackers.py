"""Trackers: calls in a thread, full disks, which numbers a service still lacks."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import TrackingConfig
from pipeline.config.tracking import mlflow_uri
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.trackers import background
from pipeline.runtime.trackers.background import Background
from pipeline.runtime.trackers.base import TrackedRun
from pipeline.runtime.trackers.json_lines import JsonLines, read_lines
from pipeline.runtime.trackers.wandb_log import last_row, read_records
from tests.helpers.disk import disk_full
from tests.helpers.trackers import of_wandb, wandb_files

OFFLINE = {"tracking": {"trackers": ["wandb"]}}


def json_lines(folder: Path) -> JsonLines:
    return JsonLines(TrackedRun.of(folder, -1, {}))


class Stuck(JsonLines):
    """A tracker whose service does not answer until an event."""

    def __init__(self, folder: Path, answer: threading.Event) -> None:
        super().__init__(TrackedRun.of(folder, -1, {}))
        self.answer = answer
        self.ended: list[Mapping[str, float] | bool] = []  # arguments of the calls at the end

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.answer.wait(60)
        super().scalars(step, values)

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.ended.append(metrics)

    def close(self, failed: bool, /) -> None:
        super().close(failed)
        self.ended.append(failed)


def test_calls_are_done_in_order_before_the_end(tmp_path: Path) -> None:
    tracker = Background("lines", tmp_path, lambda: json_lines(tmp_path))
    for step in range(100):
        tracker.scalars(step, {"a": float(step)})
    tracker.close(False)
    assert list(read_lines(tmp_path, 98)) == [(step, {"a": float(step)}) for step in range(99)]


def test_a_full_disk_is_raised_by_a_later_call(tmp_path: Path) -> None:
    tracker = Background("lines", tmp_path, lambda: json_lines(tmp_path))

    def record() -> None:
        with disk_full(500):
            for step in range(50):
                tracker.scalars(step, {"a": 1.0})
            tracker.close(False)

    with pytest.raises(OSError, match="File too large") as error:
        record()
    assert error.value.filename == str(tmp_path / "metrics.jsonl")


def test_other_errors_are_printed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Background("lines", tmp_path, lambda: json_lines(tmp_path))
    for step in range(3):
        tracker.scalars(step, {"a": complex(step)})
    tracker.scalars(3, {"a": 3.0})
    tracker.close(False)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: lines failed (Object of type complex is not JSON")
    assert list(read_lines(tmp_path, 3)) == [(3, {"a": 3.0})]


def test_a_service_that_does_not_answer_does_not_stop_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "_HURRIED_SECONDS", 0.2)
    monkeypatch.setattr(background, "_MAX_WAITING", 3)
    answer = threading.Event()
    tracker = Background("lines", tmp_path, lambda: Stuck(tmp_path, answer))
    for step in range(9):
        tracker.scalars(step, {"a": float(step)})
    tracker.close(True)
    answer.set()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: lines takes no records, so they are dropped; the run")


def test_a_full_queue_loses_neither_the_final_metrics_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_MAX_WAITING", 3)
    answer = threading.Event()
    stuck = Stuck(tmp_path, answer)
    tracker = Background("lines", tmp_path, lambda: stuck)
    for step in range(9):
        tracker.scalars(step, {"a": float(step)})
    tracker.final_metrics(8, {"b": 1.0})
    timer = threading.Timer(0.3, answer.set)  # while the end is waiting
    timer.start()
    tracker.close(False)
    timer.join()
    assert stuck.ended == [{"b": 1.0}, False]
    assert not tracker._thread.is_alive()


def test_a_full_disk_at_the_end_ends_the_thread(tmp_path: Path) -> None:
    tracker = Background("lines", tmp_path, lambda: json_lines(tmp_path))
    deadline = time.monotonic() + 60
    with disk_full(0):
        tracker.scalars(0, {"a": 1.0})
        while tracker._disk_error is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with pytest.raises(OSError, match="File too large"):
        tracker.close(False)
    assert not tracker._thread.is_alive()


def test_a_resumed_run_gives_wandb_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a kill took from W&B's file are recorded again, those in it are not."""
    pytest.importorskip("wandb", reason="needs the package wandb (extra wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    pixels = np.zeros((4, 4, 3), np.uint8)
    with Monitor(tmp_path, shown=True, step=-1, options=OFFLINE) as monitor:
        for step in range(1, 400):  # several blocks of W&B's file
            monitor.scalars(step, "train", {"loss": float(step), "nan": float("nan")})
            if step % 100 == 0:
                monitor.histogram(step, "ratio", np.arange(5.0))
    (file,) = wandb_files(tmp_path)
    content = file.read_bytes()
    assert len(content) > 2 * 32_768
    assert last_row(tmp_path, file.stem[4:]) == 401
    file.write_bytes(content[: len(content) // 2])
    num_kept = sum(r.WhichOneof("record_type") == "history" for r in read_records(file))
    assert 100 < num_kept < 300
    with Monitor(tmp_path, shown=True, step=350, options=OFFLINE) as monitor:
        for step in range(351, 411):
            monitor.scalars(step, "train", {"loss": float(step), "nan": float("nan")})
        for tracker in monitor._trackers:
            tracker.image(410, "picture", pixels)
    scalars, pictures = of_wandb(tmp_path)
    assert scalars["train/loss"] == [(step, float(step)) for step in range(1, 411)]
    assert list(pictures) == [("picture", 410)]


def test_a_new_run_has_a_new_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the package wandb (extra wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for _ in range(2):
        with Monitor(tmp_path, shown=True, step=-1, options=OFFLINE) as monitor:
            monitor.scalars(0, "evaluate", {"accuracy": 0.5})
        head = (tmp_path / "wandb" / "rows.jsonl").read_text().splitlines()[0]
        ids.append(json.loads(head)["id"])
    assert len(set(ids)) == 2


def test_names_by_options_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_PROJECT", "WANDB_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    folder = Path("/data/runs/r18")
    tracking = TrackingConfig()
    assert tracking.project_name("WANDB_PROJECT") == "deep-defense"
    assert tracking.run_name(folder) == "runs/r18"
    assert mlflow_uri(folder) == "sqlite:////data/runs/r18/mlflow.db"
    monkeypatch.setenv("WANDB_PROJECT", "imagenet")
    monkeypatch.setenv("WANDB_NAME", "first")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking.project_name("WANDB_PROJECT") == "imagenet"
    assert tracking.run_name(folder) == "first"
    assert mlflow_uri(folder) == "http://tracker:5000"
    chosen = TrackingConfig(project="digits", name="mine")
    assert (chosen.project_name("WANDB_PROJECT"), chosen.run_name(folder)) == ("digits", "mine")
