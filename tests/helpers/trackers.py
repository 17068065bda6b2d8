"""What the trackers of a run have recorded, read back by their own libraries."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.runtime.trackers.wandb_log import read_records

if TYPE_CHECKING:
    from mlflow import MlflowClient

Scalars = dict[str, list[tuple[int, float]]]  # by name: each step with its value
Pictures = dict[tuple[str, int], np.ndarray]  # by name and step: (H, W, 3), uint8


def of_tensorboard(folder: Path) -> tuple[Scalars, Pictures]:
    board = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    tags = board.Tags()
    scalars = {n: [(e.step, e.value) for e in board.Scalars(n)] for n in tags["scalars"]}
    pictures = {}
    for name in tags["images"]:
        for event in board.Images(name):
            path = folder / "picture.png"
            path.write_bytes(event.encoded_image_string)
            pictures[name, event.step] = _pixels(path)
            path.unlink()
    return scalars, pictures


def wandb_files(folder: Path) -> list[Path]:
    """W&B's files of a folder's runs, oldest first. Its process may end after ours closes the run,
    so this waits for the end of the last one."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    deadline = time.monotonic() + 30
    while not any(r.WhichOneof("record_type") == "exit" for r in read_records(files[-1])):
        assert time.monotonic() < deadline, f"{files[-1]} has no end"
        time.sleep(0.05)
    return files


def of_wandb(folder: Path) -> tuple[Scalars, Pictures]:
    scalars: Scalars = {}
    pictures: Pictures = {}
    numbers = []
    for file in wandb_files(folder):
        for record in read_records(file):
            if record.WhichOneof("record_type") != "history":
                continue
            numbers.append(record.history.step.num)
            row = _row(record.history.item)
            step = row.pop("step")
            for name, value in row.items():
                if not isinstance(value, dict):
                    scalars.setdefault(name, []).append((step, value))
                elif value["_type"] == "image-file":
                    assert (name, step) not in pictures, "a picture was recorded twice"
                    pictures[name, step] = _pixels(file.parent / "files" / value["path"])
    # W&B refuses a row that is not after its last one, also when several files are uploaded.
    assert numbers == sorted(set(numbers))
    return scalars, pictures


def _row(items: Any) -> dict[str, Any]:
    """The values of a row by name; those of a picture or a distribution are dictionaries."""
    row: dict[str, Any] = {}
    for item in items:
        name, *inner = item.nested_key or [item.key]
        if name.startswith("_"):
            continue
        value = json.loads(item.value_json)
        if inner:
            row.setdefault(name, {})[inner[0]] = value
        else:
            row[name] = value
    return row


def of_mlflow(folder: Path, uri: str | None = None) -> tuple[Scalars, Pictures]:
    client, run_id = mlflow_run(folder, uri)
    names = client.get_run(run_id).data.metrics
    scalars = {
        name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names
    }
    pictures = {}
    if not client.list_artifacts(run_id):
        return scalars, pictures
    root = Path(client.download_artifacts(run_id, ""))
    for path in root.rglob("*.png"):
        name = str(path.parent.relative_to(root))
        pictures[name, int(path.stem.removeprefix("step-"))] = _pixels(path)
    return scalars, pictures


def mlflow_run(folder: Path, uri: str | None = None) -> tuple["MlflowClient", str]:
    """The client of a run's store, and the run's id there."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
    return client, json.loads((folder / "mlflow.json").read_text())["run_id"]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
