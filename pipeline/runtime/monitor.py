"""Output of a run: a progress bar, lines in a log, and the records of its trackers.

Only rank 0's monitor prints and writes.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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

from pipeline.runtime.files import write_json
from pipeline.runtime.text_tables import short_number
from pipeline.runtime.trackers.base import TrackedRun, Tracker
from pipeline.runtime.trackers.opening import open_trackers
from pipeline.runtime.trackers.pictures import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # a third of a second

_LINE_SECONDS = 15  # between lines where there is no terminal for a bar
_STATUS_SECONDS = 2  # between two writes of progress.json


class Monitor:
    """Prints a run's progress, and records it in the run's folder, if it has one.

    Use it as a context manager, so that files are closed after an error too.
    """

    def __init__(
        self,
        folder: Path | None,
        shown: bool,
        step: int = 0,
        options: Mapping[str, Any] | None = None,
        *,
        evaluated: bool = True,
    ) -> None:
        """Open the records of a run that resumes at ``step``; later records are dropped.

        Args:
            folder: the run's folder; None: nothing is recorded.
            shown: whether this rank prints and records.
            step: number of steps done so far; -1: a new run, which drops all earlier records.
            options: the options of the run, as nested dictionaries; ``tracking`` among them.
                Default: TensorBoard is the only tracker.
            evaluated: whether the net was evaluated after these steps. If not, it will be, and a
                record of that evaluation is dropped.
        """
        self.shown, self.active = shown, shown and folder is not None
        self.console = Console(quiet=not shown, soft_wrap=True)
        self._bar: Progress | None = None
        self._name = ""  # name of the current bar
        self._last_line = self._last_status = 0.0
        # The progress, for other processes such as the launchers' `jobs` command.
        self._progress_file = folder / "progress.json" if shown and folder is not None else None
        self._trackers: list[Tracker] = []
        if shown and folder is not None:
            run = TrackedRun.of(folder, step, options or {}, evaluated=evaluated)
            self._trackers = open_trackers(run)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # The error that ends the run is the one to report. On a full disk closing fails too.
        suppress_later = suppress(OSError) if kind else nullcontext()
        with suppress_later:
            self.end_progress()
        for tracker in self._trackers:
            with suppress_later:
                tracker.close(kind is not None)

    def say(self, text: str) -> None:
        """Print a line, or several; nothing if the text is empty."""
        if text:
            self.console.print(text, highlight=False, markup=False)

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a run that has ended, to be compared between runs."""
        for tracker in self._trackers:
            tracker.final_metrics(step, metrics)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Record numbers after ``step`` steps, as ``group/name``."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        for tracker in self._trackers:
            tracker.scalars(step, named)

    def evaluation(self, entry: dict[str, Any], rho: str) -> None:
        """Show and record one evaluation of a training run.

        Args:
            entry: step, epoch, and the values of `pipeline.evaluation.statistics.Statistics`.
            rho: name of the mean ratio in it.
        """
        numbers = {
            name: value
            for name, value in entry.items()
            if isinstance(value, int | float) and name not in ("step", "epoch")
        }
        line = (
            f"epoch {entry['epoch']:g}: accuracy {entry['accuracy']:.2%}, "
            f"{rho} {short_number(entry[rho])}, "
            f"{entry['num_unflipped']} of {entry['num_samples']} never flipped"
        )
        fgs = entry.get("fgs", {})
        for after in fgs.get("accuracy", []):
            numbers[f"accuracy_after_fgs_{after['eps']:.4g}"] = after["accuracy"]
            line += f", {after['accuracy']:.2%} after FGS {after['eps']:.4g}"
        if "eps_ref" in fgs:
            eps_ref = fgs["eps_ref"]  # None: see `statistics.eps_ref`
            numbers |= {} if eps_ref is None else {"eps_ref": eps_ref}
            line += ", no eps_ref" if eps_ref is None else f", eps_ref {eps_ref:.4g}"
        self.scalars(entry["step"], "evaluation", numbers)
        self.say(line)

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        """Record a matplotlib figure."""
        if self.active:
            pixels = render(figure)
            for tracker in self._trackers:
                tracker.image(step, name, pixels)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Record a distribution, unless it is empty; values: (N,)."""
        for tracker in self._trackers if len(values) else []:
            tracker.histogram(step, name, values)

    def start_progress(self, name: str, total: int, done: int = 0, at: str = "") -> None:
        """Start a bar.

        Args:
            name: what is being done.
            total: number of steps or images.
            done: number of them that are done.
            at: position in the run, such as ``step 24/48``, for progress.json.
        """
        self.end_progress()
        self._name, self._total, self._done, self._at = name, total, done, at
        self._begin, self._begin_done = time.perf_counter(), done
        self._write_status(now=True)
        if self.shown and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def progress(self, done: int, note: str = "") -> None:
        """Update the bar; without a terminal, print a line every 15 seconds."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.shown and time.perf_counter() - self._last_line > _LINE_SECONDS:
            self._last_line = time.perf_counter()
            left = timedelta(seconds=round(self._seconds_left()))
            self.say(f"{self._name} {done}/{self._total}, {left} left  {note}")
        self._write_status()

    def advance(self, number: int) -> None:
        """Advance the bar by ``number`` steps or images."""
        self.progress(min(self._done + number, self._total))

    def end_progress(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._write_status(now=True)

    def write_progress_to(self, path: Path) -> None:
        """Write the progress to another file than the run's progress.json."""
        self._progress_file = path

    def _write_status(self, now: bool = False) -> None:
        now_seconds = time.perf_counter()
        if not self.shown or self._progress_file is None or not self._name:
            return
        if not now and now_seconds - self._last_status < _STATUS_SECONDS:
            return
        self._last_status = now_seconds
        rate = (self._done - self._begin_done) / max(now_seconds - self._begin, 1e-9)
        values = {"doing": self._name, "done": self._done, "total": self._total}
        values |= {"at": self._at, "per_second": rate, "time": time.time()}
        write_json(self._progress_file, values)

    def _seconds_left(self) -> float:
        elapsed = time.perf_counter() - self._begin
        return elapsed / max(self._done - self._begin_done, 1) * (self._total - self._done)

    def table(self, before: dict[str, Any], after: dict[str, Any], rho: str = "rho2") -> None:
        """Print accuracy and the mean ratio, named ``rho``, before and after fine-tuning."""
        table = Table(title=f"{before['num_samples']} held-out images")
        for name in ("", "before", "after"):
            table.add_column(name, justify="right")
        table.add_row("accuracy", f"{before['accuracy']:.2%}", f"{after['accuracy']:.2%}")
        table.add_row(rho, short_number(before[rho]), short_number(after[rho]))
        has_gain = before[rho] and after[rho] is not None
        gain = f"{after[rho] / before[rho]:.2f}" if has_gain else "-"
        table.add_row(f"{rho}, relative", "1", gain)
        table.add_row("never flipped", str(before["num_unflipped"]), str(after["num_unflipped"]))
        # Evaluations of older checkpoints lack this number.
        nonfinite = [str(summary.get("num_nonfinite", 0)) for summary in (before, after)]
        if nonfinite != ["0", "0"]:
            table.add_row("not finite", *nonfinite)
        self.console.print(table)
