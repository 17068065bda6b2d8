"""The evaluations of a training run, and which of them is the best."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HistoryEntry:
    """One evaluation of a training run."""

    step: int  # optimiser steps done
    epoch: float  # epochs of fine-tuning done
    summary: dict[str, Any]  # `pipeline.evaluation.statistics.Statistics.to_dict`, and num_skipped

    def to_dict(self) -> dict[str, Any]:
        """One flat dictionary, as checkpoints and summary.json hold it."""
        return {"step": self.step, "epoch": self.epoch, **self.summary}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HistoryEntry":
        """The entry that `to_dict` wrote."""
        summary = {name: v for name, v in values.items() if name not in ("step", "epoch")}
        return cls(values["step"], values["epoch"], summary)


class History:
    """The evaluations of a run in order. The first one is of the reference net, before fine-tuning;
    it is never the best.

    Attributes:
        metric: name of the value by which evaluations are compared; the largest is the best.
        entries: the evaluations.
    """

    def __init__(self, metric: str, entries: Iterable[HistoryEntry] = ()) -> None:
        self.metric = metric
        self.entries = list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def has_step(self, step: int) -> bool:
        """Whether there is an evaluation of this step."""
        return any(entry.step == step for entry in self.entries)

    def last(self, name: str) -> float | None:
        """A value of the last evaluation; None before there is one, and of a mean over no image."""
        return self.entries[-1].summary[name] if self.entries else None

    def append(self, entry: HistoryEntry) -> bool:
        """Add an evaluation; returns whether it is the best so far."""
        earlier = self._scores()
        is_reference = not self.entries
        self.entries.append(entry)
        return not is_reference and all(self._score(entry) > score for score in earlier)

    def best_step(self) -> int | None:
        """The step of the best evaluation, the first of equals; None before there is one."""
        scores = self._scores()
        if not scores:
            return None
        return self.entries[1 + scores.index(max(scores))].step

    def to_list(self) -> list[dict[str, Any]]:
        """The evaluations as dictionaries."""
        return [entry.to_dict() for entry in self.entries]

    def restore(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take over the evaluations of a checkpoint."""
        self.entries = [HistoryEntry.from_dict(values) for values in entries]

    def _scores(self) -> list[float]:
        """The metric of each evaluation after the reference."""
        return [self._score(entry) for entry in self.entries[1:]]

    def _score(self, entry: HistoryEntry) -> float:
        """The metric of an evaluation; one without a value, as rho2 of no image, is the worst."""
        value = entry.summary[self.metric]
        return -math.inf if value is None else value
