"""A whole training step: data, objective, optimiser."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.common import (
    Row,
    device_of,
    layout_of,
    load_net,
    regularizers,
    runtime_of,
    spread,
    synchronise,
    training_loader,
)
from benchmarks.counters import Flops
from pipeline.config import RegularizerConfig
from pipeline.data import index
from pipeline.data.loader import Batch, Loader
from pipeline.errors import UserError
from pipeline.training.objective import Objective, make_objective

BATCH = 32  # images
STEPS, WARM_UP = 4, 3  # steps of a repeat that are timed, and steps before them
# Dense tensor-core peaks of NVIDIA's data sheets, in TFLOP/s; fp32 without TF32.
PEAKS = {
    "H100": {"bf16": 989, "fp16": 989, "fp32": 67},
    "H200": {"bf16": 989, "fp16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 19.5},
}


class Stream:
    """Endless batches of ``--data``, or generated ones, and the time spent waiting for them."""

    def __init__(self, options: argparse.Namespace, size: int) -> None:
        device = device_of(options)
        self.loader: Loader | None = None
        if options.data is None:
            images = torch.randn(size, 3, 224, 224, device=device)
            images = images.contiguous(memory_format=layout_of(options))
            labels = torch.randint(1000, (size,), device=device)
            self._batches = itertools.repeat((images, labels))
            return
        photos = index.read(options.data, option="--data")
        if size > len(photos):
            raise UserError(
                f"--num-images {size} is more than the {len(photos)} images of {options.data}"
            )
        self.loader = training_loader(photos, size, device, half=options.precision != "fp32")
        self._batches = self._pairs(iter(self.loader))

    def _pairs(self, batches: Iterator[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in batches:
            yield batch.images, batch.labels

    @property
    def wait_seconds(self) -> float:
        """Seconds spent waiting so far."""
        return self.loader.wait_seconds if self.loader else 0.0

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        return next(self._batches)


def benchmark(options: argparse.Namespace) -> list[Row]:
    """One row for each variant: images/s, share of the time spent waiting for data, FLOP/s."""
    device, size = device_of(options), options.num_images or BATCH
    net = load_net(options)
    stream = Stream(options, size)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    plain = make_objective(net, RegularizerConfig(), runtime=runtime_of(options))
    objectives = {
        "plain": plain,
        **{
            name: _objective(net, config, name, size, options)
            for name, config in regularizers(options.max_images).items()
        },
    }

    def step(name: str) -> None:
        images, labels = next(stream)
        objective, use_methods = objectives[name], name != "plain"
        scaler.scale(objective(images, labels, use_methods=use_methods).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    flops = {}
    for name in objectives:
        step(name)
        with Flops() as counter:
            step(name)
        flops[name] = counter.total
    measured = _measure(step, list(objectives), stream, options.repeats, device)
    peak = _peak_tflops(options, device)
    rows = []
    for name, values in measured.items():
        seconds = statistics.median(s for s, _ in values)
        per_second = flops[name] / seconds / 1e12
        rows.append(
            {
                "name": name,
                "images_per_second": size / seconds,
                "ratio": seconds / statistics.median(s for s, _ in measured["plain"]),
                "data_wait": statistics.median(w for _, w in values),
                "tflops_per_second": per_second,
                "flops_utilisation": per_second / peak if peak else None,
                "spread": spread([s for s, _ in values]),
            }
        )
    return rows


def _measure(
    step: Callable[[str], None],
    names: list[str],
    stream: Stream,
    repeats: int,
    device: torch.device,
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a step, and the share of them spent waiting for data; interleaved."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            for _ in range(WARM_UP):  # uses up the batches prefetched during the previous variant
                step(name)
            synchronise(device)
            begin, waited = time.perf_counter(), stream.wait_seconds
            for _ in range(STEPS):
                step(name)
            synchronise(device)
            seconds = time.perf_counter() - begin
            measured[name].append((seconds / STEPS, (stream.wait_seconds - waited) / seconds))
    return measured


def _objective(
    net: torch.nn.Module,
    config: RegularizerConfig,
    name: str,
    size: int,
    options: argparse.Namespace,
) -> Objective:
    objective = make_objective(net, config, runtime=runtime_of(options))
    if config.max_images == "auto":
        budget = objective.max_images_that_fit((3, 224, 224), size, device_of(options))
        objective.limit_images(budget.images)
        print(f"max_images auto, {name}: {budget}")
    return objective


def _peak_tflops(options: argparse.Namespace, device: torch.device) -> float | None:
    if options.peak_tflops or device.type != "cuda":
        return options.peak_tflops
    name = torch.cuda.get_device_name(device)
    return next((p[options.precision] for key, p in PEAKS.items() if key in name), None)
