"""Pools of the images that are in the stages of a search.

In: images that enter the first stage. Out: images that have left the last one.
"""

from collections.abc import Sequence

from pipeline.attacks.attack_state import split_rows
from pipeline.attacks.search import Advanced, SearchState, Stage
from pipeline.models.attack_view import AttackView


class SearchPools:
    """One pool of waiting images for each stage, so that the net gets full batches."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Start with empty pools."""
        self._stages = stages
        self._pools: list[list[SearchState]] = [[] for _ in stages]

    def enter(self, state: SearchState, stage: int = 0) -> list[SearchState]:
        """Put images into a stage; returns those that leave the last stage at once."""
        if len(state) == 0:
            return []
        if stage == len(self._stages):
            return [state]
        return self.put_back(self._stages[stage].start(state), stage)

    def fullest(self, at_least: int) -> int | None:
        """The last stage in which at least this many images wait, or None.

        Later stages come first, so that images leave early and pools stay small.
        """
        numbers = [sum(len(part) for part in pool) for pool in self._pools]
        return next((n for n in reversed(range(len(numbers))) if numbers[n] >= at_least), None)

    def earliest(self) -> int | None:
        """The first stage with waiting images, or None."""
        return next((n for n, pool in enumerate(self._pools) if pool), None)

    def take(self, stage: int, number: int) -> SearchState:
        """Remove the images of a stage that have waited longest, at most ``number``."""
        pool = SearchState.concatenate(self._pools[stage])
        rest = pool.take(slice(number, None))
        self._pools[stage] = [rest] if len(rest) else []
        return pool.take(slice(number))

    def advance(self, view: AttackView, state: SearchState, stage: int) -> Advanced:
        """One iteration of images that `take` has removed; does not change the pools."""
        return self._stages[stage].advance(view, state)

    def put_back(self, advanced: Advanced, stage: int) -> list[SearchState]:
        """Return images to their stage or move them on; returns those that leave the last one."""
        state, ended = advanced
        leaving, staying = split_rows(ended)
        if len(staying):
            self._pools[stage].append(state.take(staying))
        if len(leaving) == 0:
            return []
        return self.enter(self._stages[stage].finish(state.take(leaving)), stage + 1)
