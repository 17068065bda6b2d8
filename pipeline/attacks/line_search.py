"""The stages of the search that need no gradient, and the check at the end.

In and out: `SearchState`. The classes follow `pipeline.attacks.search.Stage`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.attacks.projection import at_bounds, linearize_boundary
from pipeline.attacks.references import References
from pipeline.attacks.search import (
    BY_BOUND,
    Advanced,
    SearchState,
    Stage,
    clipped,
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
class _Bisection(Stage):
    """Shortens the line to a reference image of another class to where the class changes.

    Only images whose perturbation so far is longer than ``ratio`` times the line, or does not
    change the class, are searched; for the others the line is too long to matter.
    """

    p: float
    references: References | None  # None or empty: all images leave at once
    num_trials: int = 8
    ratio: float = 0.25

    def start(self, state: SearchState) -> Advanced:
        """Begin at the reference image."""
        state = state.at_stage_start()
        if not self.references:
            return Advanced(state, torch.ones_like(state.flipped))
        line, norm = _line_to_reference(state, self.references, self.p)
        short = state.smallest_norm < self.ratio * norm
        state = replace(
            state,
            best=line,
            best_norm=norm,
            best_class=self.references.classes[state.reference.clamp_min(0)],
            delta=0.5 * line,
        )
        return Advanced(state, (state.reference < 0) | (short & state.flipped))

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test the middle of the interval that contains the boundary."""
        state = _test_trial(view, state, (state.low + 1.0) / 2.0, self.p)
        trial = state.best * expand_to_images((state.low + 1.0) / 2.0)
        return Advanced(replace(state, delta=trial), state.iteration >= self.num_trials)


@dataclass(frozen=True)
class LineStart(_Bisection):
    """A start for a descent: the boundary on the line to a reference image, as ``best``.

    Where gradients are masked, the first linearised step is much too long or leads nowhere. The
    next stage, `pipeline.attacks.stages.FirstStep`, takes the nearer of the two.
    """

    # Images that have a perturbation with a cosine that is not below it are left out.
    below_cosine: float = math.inf

    def start(self, state: SearchState) -> Advanced:
        """Start from the clean image. Results so far have been recorded."""
        skipped = (state.best_cosine >= self.below_cosine) & state.best_norm.isfinite()
        begun, ended = super().start(state.restarted())
        unused = torch.full_like(begun.best_norm, torch.inf)
        return Advanced(
            replace(
                begun,
                best_norm=unused.where(ended | skipped, begun.best_norm),
                radius=torch.where(skipped, 0.0, unused),
            ),
            ended | skipped,
        )


@dataclass(frozen=True)
class ReferenceLine(_Bisection):
    """An upper bound of the distance: the boundary on the line to a reference image."""

    takes_part: bool = True  # whether the point on the line may become the image's perturbation

    def start(self, state: SearchState) -> Advanced:
        """The line itself is a bound."""
        begun, ended = super().start(state)
        if self.references:
            begun = replace(begun, upper_bound=begun.best_norm.double())
        return Advanced(begun, ended)

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test the middle of the interval that contains the boundary."""
        before = state.num_queries
        state, ended = super().advance(view, state)
        if not self.takes_part:  # queries are those of the attack
            state = replace(state, num_queries=before)
        bound = per_sample_norm(state.best.double(), self.p)
        return Advanced(replace(state, upper_bound=bound), ended)

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
        points = shifted(view, state.images, state.smallest)
        forward = view.forward_with_grad(points, state.key)
        boundary = linearize_boundary(view, forward, state.label, self.p)
        limited = at_bounds(view, points, boundary.gradient)
        cosine = boundary.cosine(state.smallest, self.p, limited)
        return Advanced(replace(state, cosine=cosine), torch.ones_like(state.flipped))


def _line_to_reference(
    state: SearchState, references: References, p: float
) -> tuple[Tensor, Tensor]:
    """From the images to their references (A, C, H, W), and its norm (A,); NaN without one."""
    line = references.images[state.reference.clamp_min(0)] - state.images
    return line, per_sample_norm(line, p).where(state.reference >= 0, torch.nan)


def _test_trial(view: AttackView, state: SearchState, factor: Tensor, p: float) -> SearchState:
    """Test ``factor`` (A,) times ``best``; where the class changes, this becomes ``best``."""
    state = replace(state, delta=clipped(view, state.images, state.delta))
    logits = view(shifted(view, state.images, state.delta), state.key)
    tested, flips = state.tested(logits, p)
    low = torch.where(flips, state.low / factor, factor)
    return replace(tested, low=low, iteration=state.iteration + 1)
