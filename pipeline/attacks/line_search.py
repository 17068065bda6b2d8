"""The stages of the search that need no gradient, and the check at the end.

In and out: `SearchState`. The classes follow `pipeline.attacks.search.Stage`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.attacks.projection import linearize_boundary
from pipeline.attacks.search import (
    BY_BOUND,
    Advanced,
    SearchState,
    Stage,
    clipped,
    line_to_reference,
    scheduled,
    shifted,
)
from pipeline.models.attack_view import AttackView


@dataclass(frozen=True)
class Record(Stage):
    """Records the distance of the method that has just ended, without a query."""

    p: float
    method: int  # number of the method in `SearchState.distances`

    def start(self, state: SearchState) -> Advanced:
        """All images leave at once."""
        return Advanced(state, torch.ones_like(state.flipped))

    def finish(self, state: SearchState) -> SearchState:
        """Record the distance."""
        return state.recorded(self.method, self.p)


@dataclass(frozen=True)
class LineSearch(Stage):
    """Shortens ``best`` along its direction to where the class changes, and records it.

    ``best`` is usually beyond the boundary by no more than an overshoot, so the first trials are at
    1 - s, 1 - 3 s, 1 - 9 s, ... of it, with s = ``first_cut``. Once one fails, the interval is
    bisected.
    """

    p: float
    method: int  # number of the method in `SearchState.distances`
    num_trials: int = 7
    first_cut: float = 0.02

    def start(self, state: SearchState) -> Advanced:
        """Search along the shortest perturbation of the method, if there is one."""
        missing = state.best_norm.isinf()
        state = replace(state.at_stage_start(), cosine=state.cosine)
        trial = state.best * expand_to_images(self._factor(state))
        return Advanced(
            replace(state, delta=torch.where(expand_to_images(missing), state.delta, trial)),
            missing,
        )

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test one point of the line."""
        factor = self._factor(state)
        state = _test_trial(view, state, factor, self.p)
        trial = state.best * expand_to_images(self._factor(state))
        ended = state.iteration >= self.num_trials
        return Advanced(replace(state, delta=trial), ended)

    def finish(self, state: SearchState) -> SearchState:
        """Record the distance of the method."""
        return state.recorded(self.method, self.p)

    def _factor(self, state: SearchState) -> Tensor:
        """The next factor (A,) on ``best``."""
        cuts = tuple(max(1.0 - self.first_cut * 3.0**n, 0.5) for n in range(self.num_trials + 1))
        outward = scheduled(cuts, state.iteration, state.low)
        return torch.where(state.low > 0, (state.low + 1.0) / 2.0, outward)


@dataclass(frozen=True)
class ReferenceLine(Stage):
    """An upper bound of the distance: a bisection between the image and a reference image of
    another class.

    Only images whose perturbation is longer than ``ratio`` times the distance to the reference, or
    does not change the class, are searched; for the others the distance itself is bound enough.
    """

    p: float
    references: Tensor  # (R, C, H, W)
    classes: Tensor  # (R,) int64, the classes that the net sees in them
    takes_part: bool  # whether the point on the line may become the image's perturbation
    num_trials: int = 8
    ratio: float = 0.25

    def start(self, state: SearchState) -> Advanced:
        """Begin at the reference image."""
        state = state.at_stage_start()
        if len(self.references) == 0:
            return Advanced(state, torch.ones_like(state.flipped))
        line, norm = line_to_reference(state, self.references, self.p)
        short = state.smallest_norm < self.ratio * norm
        state = replace(
            state,
            best=line,
            best_norm=norm,
            best_class=self.classes[state.reference.clamp_min(0)],
            delta=0.5 * line,
            upper_bound=norm.double(),
        )
        return Advanced(state, (state.reference < 0) | (short & state.flipped))

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test the middle of the interval that contains the boundary."""
        before = state.num_queries
        state = _test_trial(view, state, (state.low + 1.0) / 2.0, self.p)
        if not self.takes_part:  # queries are those of the attack
            state = replace(state, num_queries=before)
        trial = state.best * expand_to_images((state.low + 1.0) / 2.0)
        bound = per_sample_norm(state.best.double(), self.p)
        state = replace(state, delta=trial, upper_bound=bound)
        return Advanced(state, state.iteration >= self.num_trials)

    def finish(self, state: SearchState) -> SearchState:
        """Use the point on the line where no method has a shorter perturbation."""
        # NaN compares false: an image without a reference keeps its perturbation.
        wins = (state.upper_bound < state.smallest_norm) | (
            ~state.flipped & state.upper_bound.isfinite()
        )
        wins &= self.takes_part & (state.iteration > 0)
        return replace(
            state,
            smallest=torch.where(expand_to_images(wins), state.best, state.smallest),
            smallest_norm=state.upper_bound.where(wins, state.smallest_norm),
            smallest_class=state.best_class.where(wins, state.smallest_class),
            winner=torch.where(wins, BY_BOUND, state.winner),
            flipped=state.flipped | wins,
        )


@dataclass(frozen=True)
class Optimality(Stage):
    """Measures the cosine of the shortest perturbation and the boundary's normal at its end."""

    p: float

    def start(self, state: SearchState) -> Advanced:
        """All images stay for one query."""
        state = replace(state, cosine=torch.full_like(state.cosine, torch.nan))
        return Advanced(state, ~state.flipped)

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """One forward pass and gradient at the end of the perturbation."""
        forward = view.forward_with_grad(shifted(view, state.images, state.smallest), state.key)
        boundary = linearize_boundary(view, forward, state.label, self.p)
        cosine = boundary.cosine(state.smallest, self.p)
        return Advanced(replace(state, cosine=cosine), torch.ones_like(state.flipped))


def _test_trial(view: AttackView, state: SearchState, factor: Tensor, p: float) -> SearchState:
    """Test ``factor`` (A,) times ``best``; where the class changes, this becomes ``best``."""
    state = replace(state, delta=clipped(view, state.images, state.delta))
    logits = view(shifted(view, state.images, state.delta), state.key)
    tested, flips = state.tested(logits, p)
    low = torch.where(flips, state.low / factor, factor)
    return replace(tested, low=low, iteration=state.iteration + 1)
