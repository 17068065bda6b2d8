"""What every check has: amounts, a device, a record of its values, and how it ended."""

import math
import multiprocessing
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import Row
from pipeline.errors import first_line

ROOT = Path(__file__).resolve().parents[2]
MAX_PROCESS_SECONDS, MIN_PROCESS_SECONDS = 240.0, 60.0  # the second also close to the deadline


class Skip(Exception):
    """A check cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Size:
    """The amounts of the check's full form, or of its small one."""

    small: bool
    num_photos: int  # generated JPEGs
    side: int  # of the images that nets take, in pixels
    num_compared: int  # images in comparisons of nets
    num_evaluated: int  # images in evaluations that are repeated
    batch_sizes: tuple[int, ...]  # images in a batch of the tables
    model: str  # the net of the tables, as model.name
    repeats: int  # of timed runs
    precisions: tuple[str, ...]  # of training runs
    run_options: tuple[str, ...]  # of pipeline/finetune.py
    interrupted_at: int  # step of such a run after which it is stopped


FULL = Size(
    small=False,
    num_photos=600,
    side=224,
    num_compared=4,
    num_evaluated=160,
    batch_sizes=(32, 128, 256),
    model="resnet18",
    repeats=2,
    precisions=("fp32", "bf16", "fp16"),
    run_options=(
        *("--model.name", "lenet", "--train.pretrain_epochs", "2", "--train.epochs", "2"),
        *("--evaluation.num_images", "200", "--log.every_steps", "1", "--log.panel_images", "0"),
    ),
    interrupted_at=150,
)
SMALL = Size(
    small=True,
    num_photos=40,
    side=32,
    num_compared=2,
    num_evaluated=40,
    batch_sizes=(2,),
    model="gpu_checks.nets:tiny",
    repeats=1,
    precisions=("fp32",),
    run_options=(
        *("--train.pretrain_epochs", "1", "--train.epochs", "1", "--train.batch_size", "1000"),
        *("--evaluation.num_images", "40", "--log.every_steps", "1", "--log.panel_images", "0"),
    ),
    interrupted_at=8,
)


@dataclass(frozen=True)
class Setup:
    """What the checks run on."""

    device: torch.device
    size: Size
    folder: Path  # for generated data and runs
    deadline: float  # time.monotonic() after which no check starts
    multi: bool = False  # also the checks of several ranks

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def process_seconds(self) -> float:
        """Seconds that a process which a check starts may take."""
        return min(MAX_PROCESS_SECONDS, max(self.seconds_left, MIN_PROCESS_SECONDS))


class Value(NamedTuple):
    """One measured value and its tolerance."""

    name: str
    value: Any
    tolerance: str = ""  # as text; empty: the value is only reported
    passed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity."""
        is_number = not isinstance(self.value, float) or math.isfinite(self.value)
        return self._asdict() | {"value": self.value if is_number else str(self.value)}


@dataclass
class Record:
    """The values and tables of one check, in the order in which they were measured."""

    values: list[Value] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Report a value without a tolerance."""
        self.values.append(Value(name, value))

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Require a value of at most ``limit``; NaN fails."""
        self.values.append(Value(name, value, f"at most {limit:g}", bool(value <= limit)))

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Require a value of at least ``limit``; NaN fails."""
        self.values.append(Value(name, value, f"at least {limit:g}", bool(value >= limit)))

    def equal(self, name: str, value: Any, expected: Any, *, required: bool = True) -> None:
        """Require an equal value; or report it, where equality is not claimed."""
        tolerance = f"equal to {expected}" if required else f"{expected} is not claimed"
        self.values.append(Value(name, value, tolerance, not required or bool(value == expected)))

    def true(self, name: str, value: bool, *, required: bool = True) -> None:
        """Require that something holds; or report it, where it is not claimed."""
        self.equal(name, bool(value), expected=True, required=required)

    def fail(self, name: str, reason: str) -> None:
        """Report that something did not work."""
        self.values.append(Value(name, reason, "no error", passed=False))

    @property
    def failures(self) -> list[str]:
        """Names of the values beyond their tolerance."""
        return [value.name for value in self.values if not value.passed]


Check = Callable[[Setup, Record], None]


@dataclass(frozen=True)
class Outcome:
    """How a check ended."""

    name: str
    status: str  # passed, failed, skipped; running: the process ended during the check
    reason: str = ""
    seconds: float = 0.0
    record: Record = field(default_factory=Record)
    trace: str = ""  # of an unexpected exception

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
            "values": [value.to_dict() for value in self.record.values],
            "tables": self.record.tables,
            "trace": self.trace,
        }


def run_check(name: str, check: Check, setup: Setup) -> Outcome:
    """Run one check. Any exception ends this check only; values that it has recorded are kept."""
    if setup.seconds_left <= 0:
        return Outcome(name, "skipped", "the time of --minutes is over")
    record, begin, trace = Record(), time.monotonic(), ""
    try:
        check(setup, record)
        status, reason = "passed", ""
        if record.failures:
            status, reason = "failed", f"beyond the tolerance: {'; '.join(record.failures)}"
    except Skip as skip:
        status, reason = "skipped", str(skip)
    except Exception as error:
        status, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
        trace = traceback.format_exc()
    if setup.on_gpu:
        torch.cuda.empty_cache()  # for the processes of other checks
    return Outcome(name, status, reason, time.monotonic() - begin, record, trace)


def run_in_new_process(name: str, check: Check, setup: Setup) -> Outcome:
    """As `run_check`, in a process of its own, which may crash."""
    begin, context = time.monotonic(), multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(run_check, name, check, setup).result()
    except BrokenProcessPool:
        reason = "the process of this check crashed"
        return Outcome(name, "failed", reason, time.monotonic() - begin)
