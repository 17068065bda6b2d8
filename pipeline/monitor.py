"""What a run shows: a progress bar, lines in a log, metrics.jsonl, and TensorBoard.

Rank 0's monitor is shown; the other ranks' monitors do nothing.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.atomic import replacing, write_json

_LINE_SECONDS = 15  # between lines where there is no terminal for a bar
_STATUS_SECONDS = 2  # between two states of progress.json


class Monitor:
    """Shows a run, and records it where it has a folder; inert on ranks that are not ``shown``.

    Use it as a context manager, so that files are closed whatever ends the run.
    """

    def __init__(self, folder: Path | None, shown: bool, step: int = 0) -> None:
        """Open the records of a run that goes on from ``step``; what lies beyond is dropped."""
        self.shown, self.active = shown, shown and folder is not None
        self.console = Console(quiet=not shown, soft_wrap=True)
        self._bar: Progress | None = None
        self._name = ""  # of what goes on
        self._last_line = self._last_status = 0.0
        # Where progress is written for whoever looks from outside; None: nowhere.
        self.status = folder / "progress.json" if self.active else None
        if not self.active:
            return
        self._path = folder / "metrics.jsonl"
        _drop_after(self._path, step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.end_progress()
        if self.active:
            self._file.close()
            self._board.close()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False)

    def warn(self, *lines: str) -> None:
        """Print lines on stderr, but for empty ones."""
        for line in filter(None, lines if self.shown else ()):
            print(line, file=sys.stderr, flush=True)

    def hyper_parameters(self, options: dict[str, Any], metrics: dict[str, float]) -> None:
        """Enter the run into TensorBoard's table of hyper-parameters."""
        if self.active:
            plain = (bool, int, float, str)
            values = {k: v if isinstance(v, plain) else str(v) for k, v in options.items()}
            for summary in hparams(values, metrics):
                self._board.file_writer.add_summary(summary)

    def scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        """Record numbers after ``step`` steps: one JSON line, and a TensorBoard point each."""
        if not self.active:
            return
        named = {f"{group}/{name}": value for name, value in values.items()}
        line = {"step": step, "time": time.time(), **named}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in named.items():
            self._board.add_scalar(name, value, step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Show a matplotlib figure in TensorBoard."""
        if self.active:
            self._board.add_figure(name, figure, step)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Show a distribution in TensorBoard."""
        if self.active and len(values):
            self._board.add_histogram(name, values, step)

    def start_progress(self, name: str, total: int, done: int = 0) -> None:
        """Begin a bar of ``total`` steps."""
        self.end_progress()
        self._name, self._total, self._done = name, total, done
        self._begin, self._begin_done = time.perf_counter(), done
        self._write_status(now=True)
        if self.shown and self.console.is_terminal:
            columns = (
                *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
                *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def progress(self, done: int, note: str = "") -> None:
        """Move the bar; without a terminal, print a line now and then."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.shown and time.perf_counter() - self._last_line > _LINE_SECONDS:
            self._last_line = time.perf_counter()
            left = timedelta(seconds=round(self._seconds_left()))
            self.say(f"{self._name} {done}/{self._total}, {left} left  {note}")

        self._write_status()

    def advance(self, number: int) -> None:
        """Move the bar by so much."""
        self.progress(min(self._done + number, self._total))

    def end_progress(self) -> None:
        """Take the bar away."""
        self._write_status(now=True)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _write_status(self, now: bool = False) -> None:
        clock = time.perf_counter()
        if not self.shown or self.status is None or not self._name:
            return
        if not now and clock - self._last_status < _STATUS_SECONDS:
            return
        self._last_status = clock
        rate = (self._done - self._begin_done) / max(clock - self._begin, 1e-9)
        values = {"doing": self._name, "done": self._done, "total": self._total}
        write_json(self.status, {**values, "per_second": rate, "time": time.time()})

    def _seconds_left(self) -> float:
        passed = time.perf_counter() - self._begin
        return passed / max(self._done - self._begin_done, 1) * (self._total - self._done)

    def table(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Print accuracy and rho2 before and after fine-tuning."""
        table = Table(title=f"{before['num_samples']} held-out images")
        for name in ("", "before", "after"):
            table.add_column(name, justify="right")
        table.add_row("accuracy", f"{before['accuracy']:.2%}", f"{after['accuracy']:.2%}")
        table.add_row("rho2", f"{before['rho2']:.4g}", f"{after['rho2']:.4g}")
        gain = f"{after['rho2'] / before['rho2']:.2f}" if before["rho2"] else "-"
        table.add_row("rho2, relative", "1", gain)
        table.add_row("never flipped", str(before["num_unflipped"]), str(after["num_unflipped"]))
        # Evaluations of older checkpoints do not hold this number.
        nonfinite = [str(summary.get("num_nonfinite", 0)) for summary in (before, after)]
        if nonfinite != ["0", "0"]:
            table.add_row("not finite", *nonfinite)
        self.console.print(table)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on every platform

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of metrics.jsonl up to ``step``: a resumed run writes the rest again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    with replacing(path) as partial:
        partial.write_bytes(b"".join(kept))
