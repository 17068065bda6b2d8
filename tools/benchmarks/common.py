"""Shared by the benchmarks: images, nets, interleaved timing, the report."""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pipeline.config import DataConfig, ModelConfig, RegularizerConfig, RuntimeConfig, TrainConfig
from pipeline.data import index, source
from pipeline.data.batches import TrainingPlan, evaluation_specs
from pipeline.data.loader import Batch, Loader
from pipeline.errors import UserError
from pipeline.models import build, prepare
from pipeline.models.attack_view import AttackView
from pipeline.runtime import allocator, machine
from pipeline.runtime.files import writable, write_json
from pipeline.runtime.reproducibility import set_tf32, use_reproducible_kernels
from pipeline.training.objective import Objective

Row = dict[str, Any]
JSON_REMEDY = "give another --json"

# The attack of all benchmarks. In training it has the paper's number of iterations; alone, compared
# with other libraries, it has foolbox's default number.
NUM_CANDIDATES, OVERSHOOT = 10, 0.02
TRAINING_ITERATIONS, EVALUATION_ITERATIONS = 5, 50
LAM, C = 5.0, 500.0  # lambda and c of the paper's ImageNet runs


def set_up_device(options: argparse.Namespace) -> torch.device:
    """The device of --device, prepared as a run prepares it.

    Raises:
        UserError: there is no GPU.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU on this machine")
    use_reproducible_kernels()
    set_tf32(allowed=False)
    if options.device == "cpu":
        allocator.retain_freed_blocks()
    torch.manual_seed(0)
    return device_of(options)


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of --device."""
    return torch.device("cuda", 0) if options.device == "cuda" else torch.device(options.device)


def runtime_of(options: argparse.Namespace) -> RuntimeConfig:
    """The runtime section with these options."""
    layout = {"auto": "auto", "yes": True, "no": False}[options.channels_last]
    return RuntimeConfig(device=options.device, precision=options.precision, channels_last=layout)


def layout_of(options: argparse.Namespace) -> torch.memory_format:
    """Memory format of net and images."""
    layout = prepare.memory_format(runtime_of(options), device_of(options))
    return torch.contiguous_format if layout == torch.preserve_format else layout


def load_images(options: argparse.Namespace, default: int) -> Tensor:
    """``--num-images`` centre crops of ``--data``, or generated images; normalised, on the device.

    Args:
        options: the command line.
        default: number of images without ``--num-images``.
    """
    device, num_images = device_of(options), options.num_images or default
    if options.data is None:
        images = torch.randn(num_images, 3, 224, 224, device=device)
    else:
        photos = index.read(options.data, option="--data")
        images = _centre_crops(photos, num_images, device).images
    return images.contiguous(memory_format=layout_of(options))


def _centre_crops(photos: index.Index, num_images: int, device: torch.device) -> Batch:
    config = DataConfig()
    rows = photos.subset(min(num_images, len(photos)))
    rows = np.resize(rows, num_images)  # repeats the images if there are too few
    specs = evaluation_specs(photos, rows, config, num_images)
    threads = source.decoding_threads(config)
    (batch,) = Loader(photos, specs, config, device, num_images, threads)
    return batch


def load_crops(options: argparse.Namespace, default: int) -> tuple[Tensor, Tensor]:
    """``--num-images`` crops of ``--data``, random ones with ``--crops random``, and their labels.

    Raises:
        UserError: there is no ``--data``.
    """
    if options.data is None:
        raise UserError("--labels true and --crops random need --data: an index of photos")
    photos, size = index.read(options.data, option="--data"), options.num_images or default
    if options.crops == "random":
        batch = next(iter(training_loader(photos, size, device_of(options), half=False)))
    else:
        batch = _centre_crops(photos, size, device_of(options))
    return batch.images.contiguous(memory_format=layout_of(options)), batch.labels


def load_net(options: argparse.Namespace) -> nn.Module:
    """The net of ``--model`` and ``--weights``, in evaluation mode."""
    config = ModelConfig(name=options.model, weights=options.weights)
    net = build.build(config, 1000).to(device_of(options))
    return net.to(memory_format=layout_of(options)).eval()


def load_attack(options: argparse.Namespace, default: int) -> tuple[AttackView, Tensor, Tensor]:
    """The net as an attack sees it, images, and the classes that the net sees in them."""
    net = load_net(options).requires_grad_(requires_grad=False)
    images, view = load_images(options, default), AttackView(net)
    with torch.no_grad():
        return view, images, view(images).argmax(dim=1)


def training_loader(photos: index.Index, size: int, device: torch.device, half: bool) -> Loader:
    """Endless batches of random crops of the photos, as a run with one rank reads them."""
    config = DataConfig(half_input=half)
    specs = TrainingPlan(photos, config, TrainConfig(batch_size=size), 0, 1).specs(0, 2**40)
    return Loader(photos, specs, config, device, size, source.decoding_threads(config))


def in_turn(
    variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant, measured ``repeats`` times. Variants are interleaved, so that other
    work on the machine changes all of them equally."""
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
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(measured: dict[str, list[float]]) -> dict[str, float]:
    """The median of each variant's repeats."""
    return {name: statistics.median(values) for name, values in measured.items()}


def spread(values: list[float]) -> float:
    """Half the range, relative to the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def rates(
    seconds: dict[str, list[float]], num_images: int, results: dict[str, dict[str, float]]
) -> list[Row]:
    """One row for each variant.

    Args:
        seconds: seconds of each repeat, by variant. Ratios are relative to the first variant.
        num_images: number of images of each repeat.
        results: other numbers of each variant, for more columns.
    """
    typical = medians(seconds)
    first = next(iter(typical.values()))
    return [
        {
            "name": name,
            "images_per_second": num_images / median,
            "ratio": first / median,
            **results[name],
            "spread": spread(seconds[name]),
        }
        for name, median in typical.items()
    ]


def report(rows: list[Row], device: torch.device, options: argparse.Namespace) -> None:
    """Print the rows as a table, and write them to the file of --json."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table()
    for name in columns:
        table.add_column(name, justify="left" if name == "name" else "right")
    for row in rows:
        table.add_row(*(_shown(row.get(name)) for name in columns))
    Console(width=None if Console().is_terminal else 160).print(table)
    if options.json is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        values = {k: v for k, v in vars(options).items() if k not in ("json", "what")}
        for path in ("data", "weights"):
            if values[path] is not None:
                values[path] = Path(values[path]).name
        result = {
            "benchmark": options.what,
            "device": name,
            "cores": machine.cores(),
            "options": values,
            "versions": machine.versions(),
            "rows": rows,
        }
        with writable(options.json, JSON_REMEDY):
            write_json(options.json, result)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def training_pass(
    objective: Objective, images: Tensor, labels: Tensor, *, use_methods: bool
) -> Callable[[], None]:
    """The passes of a training step, without the optimiser."""

    def run() -> None:
        objective.zero_grad(set_to_none=True)
        objective(images, labels, use_methods=use_methods).loss.backward()

    return run


def regularizers(max_images: int | Literal["auto"] | None) -> dict[str, RegularizerConfig]:
    """The regulariser with each gradient, by name; the paper's options for ImageNet.

    ``true distance`` is measured after DeepFool and a projection.
    """
    unrolled = RegularizerConfig(lam=LAM, c=C, max_images=max_images)
    boundary = replace(unrolled, gradient="boundary")
    attack = replace(boundary.attack, method="superdeepfool")
    return {
        "unrolled": unrolled,
        "boundary": boundary,
        "true distance": replace(boundary, attack=attack),
        "one step": replace(unrolled, gradient="one_step"),
    }
