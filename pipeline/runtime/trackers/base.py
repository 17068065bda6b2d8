"""The interface of trackers, which record the numbers and pictures of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import TrackingConfig
from pipeline.config.text import flatten

Options = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that is recorded."""

    folder: Path
    step: int  # optimiser steps done so far; -1: a new run, whose earlier records do not count
    tracking: TrackingConfig
    options: Options  # of the run, by their full names
    evaluated: bool = True  # whether the records of an evaluation at ``step`` belong to the run

    @classmethod
    def of(
        cls, folder: Path, step: int, options: Mapping[str, Any], *, evaluated: bool = True
    ) -> "TrackedRun":
        """A run with nested options, ``tracking`` among them unless it is an earlier version's."""
        plain = (bool, int, float, str)
        flat = {k: v if isinstance(v, plain) else str(v) for k, v in flatten(dict(options)).items()}
        tracking = TrackingConfig(**options.get("tracking", {}))
        return cls(folder=folder, step=step, tracking=tracking, options=flat, evaluated=evaluated)

    @property
    def resumes(self) -> bool:
        """Whether records up to ``step`` belong to this run."""
        return self.step >= 0

    @property
    def name(self) -> str:
        """The name of the run in services."""
        return self.tracking.run_name(self.folder)


class Tracker(ABC):
    """Records a run.

    All methods may raise an `OSError` of a full disk, with the name of the file or folder.
    """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers after ``step`` steps, by their names."""

    @abstractmethod
    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record a picture after ``step`` steps; pixels: (H, W, 3), uint8."""

    @abstractmethod
    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Record a distribution after ``step`` steps; values: (N,), at least one."""

    @abstractmethod
    def final_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a run that has ended, to be compared between runs."""

    @abstractmethod
    def close(self, failed: bool, /) -> None:
        """Write what is left; ``failed``: the run ends by an error or a signal."""


class Service(Tracker):
    """A tracker whose records cannot be removed, so a resumed run skips those that it has."""

    def __init__(self, last_steps: dict[str, int]) -> None:
        """Start with the last recorded step of each name that is known."""
        self._last_steps = last_steps

    def last_step(self, name: str) -> int:
        """The last step at which a number or a picture was recorded; -1: none."""
        return self._last_steps.get(name, -1)

    def unrecorded(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the values that are not recorded at this step yet."""
        return {name: value for name, value in values.items() if step > self.last_step(name)}

    def mark(self, step: int, *names: str) -> None:
        """Remember that these names are recorded up to ``step``."""
        self._last_steps.update(dict.fromkeys(names, step))
