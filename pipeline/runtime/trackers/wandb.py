"""Records a run in Weights & Biases.

W&B numbers the rows of a run's history, refuses rows that are not after its last one, and cannot
remove rows. So a row has a number of its own, in addition to the step. The table of rows
(OUTPUT/wandb/rows.jsonl) tells a resumed run which steps the rows hold that W&B has kept.
"""

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError, first_line, note, warn
from pipeline.runtime.files import atomic_write

from .base import Service, TrackedRun
from .wandb_log import last_row

_STEP = "step"  # the axis of all charts
# Seconds for a connection at the start, and for uploads at the end. What is not uploaded stays on
# the disk, for `wandb sync`. The environment may set others, as WANDB_INIT_TIMEOUT.
_LIMITS = {"init_timeout": 30.0, "finish_timeout": 30.0}
_FLUSH_SECONDS = 1.0  # between writes of W&B's own file, which a kill cuts off


class _Row(NamedTuple):
    """A row of the history."""

    number: int
    step: int
    names: list[str]


class Wandb(Service):
    """A run in W&B."""

    def __init__(self, run: TrackedRun) -> None:
        """Start the run, or continue the one that OUTPUT/wandb/rows.jsonl names."""
        self._table = run.folder / "wandb" / "rows.jsonl"
        run_id, rows = _read_table(self._table) if run.resumes else (secrets.token_hex(4), [])
        self._run = _start(run, run_id)
        offline = self._run.offline
        num_kept = last_row(run.folder, run_id) + 1 if offline else self._run.starting_step
        rows = [row for row in rows if row.number < num_kept]
        super().__init__({name: row.step for row in rows for name in row.names})
        self._num_rows = num_kept if run.resumes else 0
        with atomic_write(self._table) as partial:
            head = json.dumps({"id": run_id})
            partial.write_text("\n".join([head, *(json.dumps(row) for row in rows), ""]))
        self._file = self._table.open("a")
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        self._say(run.folder)

    def _say(self, folder: Path) -> None:
        if self._run.offline:
            segments = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
            note(f"W&B: recording offline; to upload it: wandb sync {segments}")
        elif self._run.url:
            note(f"W&B: {self._run.url}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record a row with those of the numbers that are not recorded yet."""
        self._log(step, self.unrecorded(step, values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record a picture, unless there is one of this step; pixels: (H, W, 3), uint8."""
        if step > self.last_step(name):
            import wandb

            self._log(step, {name: wandb.Image(pixels)})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Record a distribution, unless there is one of this step; values: (N,)."""
        if step > self.last_step(name):
            import wandb

            self._log(step, {name: wandb.Histogram(np_histogram=np.histogram(values, bins=64))})

    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics as scalars; the run has its options since its start."""
        self.scalars(step, metrics)

    def close(self, failed: bool, /) -> None:
        """Finish the run."""
        self._file.close()
        self._run.finish(exit_code=int(failed))

    def _log(self, step: int, values: dict[str, Any]) -> None:
        """Write a row. The table has it before W&B does: rows that W&B loses are recorded again,
        and those that it has are known."""
        if not values:
            return
        self._file.write(json.dumps(_Row(self._num_rows, step, list(values))) + "\n")
        self._file.flush()
        self._run.log({_STEP: step, **values}, step=self._num_rows, commit=True)
        self._num_rows += 1
        self.mark(step, *values)


def check_login() -> None:
    """Refuse to start without a login, unless records stay on this machine.

    Raises:
        UserError: names the remedies.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled"):
        return
    try:
        logged_in = wandb.login(prompt=False, verify=False)
        reason = "there is no login"
    except (wandb.Error, ValueError) as error:
        logged_in, reason = False, first_line(error)
    if not logged_in:
        raise UserError(
            f"tracking.trackers wandb: {reason}; run wandb login, set WANDB_API_KEY, or record "
            "without a login with WANDB_MODE=offline"
        )


def _start(run: TrackedRun, run_id: str) -> Any:
    """W&B's run: online; offline with WANDB_MODE=offline or where its service cannot be used."""
    import wandb

    settings: dict[str, Any] = {"console": "off", "quiet": True, "reinit": "create_new"}
    for name, seconds in _LIMITS.items():
        if f"WANDB_{name.upper()}" not in os.environ:
            settings[name] = seconds
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
        settings["x_transaction_log_flush_interval"] = _FLUSH_SECONDS
    arguments: dict[str, Any] = {
        "project": run.tracking.project_name("WANDB_PROJECT"),
        "name": run.name,
        "id": run_id,
        "dir": run.folder,
        "config": dict(run.options),
        "allow_val_change": True,
        "resume": "allow",
        "settings": wandb.Settings(**settings),
    }
    try:
        return wandb.init(**arguments)
    except wandb.Error as error:
        warn(f"W&B cannot be used ({first_line(error)}); it is recorded offline")
        wandb.teardown()  # its process still has a run with this id
        return wandb.init(**arguments, mode="offline")


def _read_table(path: Path) -> tuple[str, list[_Row]]:
    """The id and the rows of an earlier start; a new id and no rows without one.

    A last line that a kill cut short is left out.
    """
    if not path.exists():
        return secrets.token_hex(4), []
    head, *lines = path.read_text().splitlines(keepends=True)
    rows = [_Row(*json.loads(line)) for line in lines if line.endswith("\n")]
    return json.loads(head)["id"], rows
