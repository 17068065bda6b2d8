"""What a step costs besides its arithmetic: waits for the device, launches, idle time."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.common import (
    Row,
    layout_of,
    load_net,
    regularizers,
    runtime_of,
    synchronise,
    training_pass,
)
from gpu_checks.check import ROOT, Record, Setup, Skip
from gpu_checks.tables import options_of
from pipeline.config import RegularizerConfig
from pipeline.training.objective import make_objective

NUM_IMAGES = 32  # for waits and launches: the fewer images, the more they cost
TIMED_STEPS = 5
OUTSIDE = "outside pipeline/, or in a backward pass"  # whose warnings torch shows when it ends
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")  # names of the calls begin like this


def steps_of(setup: Setup, num_images: int) -> dict[str, Callable[[], None]]:
    """A plain step and one of each gradient, in bf16 and channels_last, on the classes that the
    net predicts, so that all images are correct."""
    options = options_of(setup, "step", num_images, "bf16")
    net = load_net(options)
    images = torch.randn(num_images, 3, 224, 224, device=setup.device)
    images = images.contiguous(memory_format=layout_of(options))
    configs = {"plain": RegularizerConfig(), **regularizers(None)}
    objectives = {
        name: make_objective(net, config, runtime=runtime_of(options))
        for name, config in configs.items()
    }
    with torch.no_grad():
        labels = objectives["plain"].view(images).argmax(dim=1)
    return {
        name: training_pass(objective, images, labels, use_methods=name != "plain")
        for name, objective in objectives.items()
    }


def waits(setup: Setup, record: Record) -> None:
    """Operations of a step in which the host waits for the GPU, by the line that calls them."""
    if not setup.on_gpu:
        raise Skip("torch counts waits only on a GPU")
    for name, step in steps_of(setup, NUM_IMAGES).items():
        step()  # what the first step alone does is not counted
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with counted_warnings() as sites:
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        title = f"{name}: waits in a step of {NUM_IMAGES} images"
        # DeepFool asks in each iteration which images are left: without a wait nothing was counted.
        record.at_least(title, sites.total(), int(name in ("unrolled", "boundary")))
        record.tables[f"waits of {name}"] = [
            {"site": site, "waits": number} for site, number in sites.most_common()
        ]


@contextmanager
def counted_warnings() -> Iterator[Counter[str]]:
    """Count warnings of synchronising operations, by the innermost line of this project."""
    sites: Counter[str] = Counter()

    def count(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            sites[_project_line(traceback.extract_stack())] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count  # restored by catch_warnings
        yield sites


def _project_line(stack: traceback.StackSummary) -> str:
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "pipeline"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return OUTSIDE


def launches(setup: Setup, record: Record) -> None:
    """Kernel launches of a step; on a CPU operations of ATen, also those inside others."""
    rows: list[Row] = []
    for name, step in steps_of(setup, NUM_IMAGES if setup.on_gpu else 2).items():
        step()
        events = profiled(setup, step)
        if setup.on_gpu:
            number = sum(event.name.startswith(LAUNCHES) for event in events)
        else:
            number = sum(event.name.startswith("aten::") for event in events)
        rows.append({"name": name, "launches" if setup.on_gpu else "operations": number})
        record.at_least(f"{name}: counted", number, 1)
    record.tables["launches in a step"] = rows


def busy(setup: Setup, record: Record) -> None:
    """The share of a step during which the GPU computes.

    It is the time that kernels cover in a profile, over the time of a step without the profiler.
    """
    if not setup.on_gpu:
        raise Skip("the busy share is that of a GPU")
    size = max(setup.size.batch_sizes)
    steps = steps_of(setup, size)
    for name in ("plain", "boundary", "one step"):
        steps[name]()
        seconds = _seconds(setup, steps[name])
        events = profiled(setup, steps[name])
        kernels = (
            (event.time_range.start, event.time_range.end)
            for event in events
            if event.device_type.name == "CUDA"
        )
        record.note(f"{name}: seconds of a step of {size} images", seconds)
        record.at_least(f"{name}: busy share", union(kernels) * 1e-6 / seconds, 0.01)


def profiled(setup: Setup, run: Callable[[], None]) -> list[Any]:
    """The profiler's events of one call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_gpu else [])]
    with profiler(activities=activities) as result:
        run()
        synchronise(setup.device)
    return list(result.events() or [])


def _seconds(setup: Setup, run: Callable[[], None]) -> float:
    synchronise(setup.device)
    begin = time.perf_counter()
    for _ in range(TIMED_STEPS):
        run()
    synchronise(setup.device)
    return (time.perf_counter() - begin) / TIMED_STEPS


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """The length that intervals cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
