"""What the benchmarks share: images, nets, fair timing, the report."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pipeline import models, setup
from pipeline.config import DataConfig, ModelConfig
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader

Row = dict[str, Any]


def device_of(options: argparse.Namespace) -> torch.device:
    """The device asked for."""
    return torch.device(options.device)


def load_images(options: argparse.Namespace) -> Tensor:
    """``--num-images`` centre crops of ``--data``, or generated ones; normalised, on the device."""
    device, number = device_of(options), options.num_images
    if options.data is None:
        return torch.randn(number, 3, 224, 224, device=device)
    photos, config = index.read(options.data, option="--data"), DataConfig()
    rows = np.resize(photos.subset(number), number)  # repeats where there are too few
    specs = evaluation_specs(photos, rows, config, number)
    (batch,) = Loader(photos, specs, config, device, number, threads=2)
    return batch.images


def load_net(options: argparse.Namespace) -> nn.Module:
    """The net of ``--model`` and ``--weights``, in evaluation mode."""
    config = ModelConfig(name=options.model, weights=options.weights)
    return models.build(config, 1000).to(device_of(options)).eval()


def in_turn(
    variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant, run in turn ``repeats`` times, so that noise meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            synchronise(device)
            begin = time.perf_counter()
            run()
            synchronise(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> float:
    """Half the range over the median: how far single runs lie from it."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def report(rows: list[Row], device: torch.device, path: Path | None) -> None:
    """Print the rows as a table, and write them to a JSON file if asked to."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table()
    for name in columns:
        table.add_column(name, justify="left" if name == "name" else "right")
    for row in rows:
        values = (row.get(name, "") for name in columns)
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else f"{v}" for v in values))
    Console(width=None if Console().is_terminal else 160).print(table)
    if path is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        result = {"device": name, "versions": setup.versions(), "rows": rows}
        path.write_text(json.dumps(result, indent=2) + "\n")
