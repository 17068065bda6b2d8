"""The stages of the search that follow gradients: projections onto the boundary, norm descent.

In and out: `SearchState`. The classes follow `pipeline.attacks.search.Stage`.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from pipeline.attacks.linearized_step import (
    Candidates,
    PointsToLinearize,
    candidate_classes,
    nearest_boundary,
)
from pipeline.attacks.norms import expand_to_images, per_sample_norm, steepest_step
from pipeline.attacks.projection import linearize_boundary, project
from pipeline.attacks.search import (
    Advanced,
    SearchState,
    Stage,
    Tested,
    clipped,
    scheduled,
    shifted,
)
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView


@dataclass(frozen=True)
class Projections(Stage):
    """Shortens perturbations that have reached a boundary (`pipeline.attacks.projection`).

    The share of the full projection and the overshoot decrease geometrically over the steps. An
    image leaves after ``max_steps``, or once ``patience`` steps have improved neither its distance
    nor its cosine. One whose class has not changed yet is only moved towards the boundary.
    """

    p: float
    max_steps: int
    share: tuple[float, float] = (0.3, 0.05)
    overshoot: tuple[float, float] = (0.02, 0.01)
    patience: int = 6

    def start(self, state: SearchState) -> Advanced:
        """Continue from the perturbation that has reached the boundary."""
        return Advanced(state.at_stage_start(), torch.zeros_like(state.flipped))

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test the perturbation, linearise there, and take a step."""
        state = replace(state, delta=clipped(view, state.images, state.delta))
        forward = view.forward_with_grad(shifted(view, state.images, state.delta), state.key)
        tested = state.tested(forward.logits.detach(), self.p).state
        boundary = linearize_boundary(view, forward, state.label, self.p)
        # Values at their bounds count: a projection is not exact there, so a descent shall follow.
        cosine = torch.nan_to_num(boundary.cosine(state.delta, self.p), -1.0)
        share = scheduled(_geometric(self.share, self.max_steps), state.iteration, cosine)
        share = share.where(tested.best_norm.isfinite(), 0.0)
        overshoot = scheduled(_geometric(self.overshoot, self.max_steps), state.iteration, cosine)
        delta = project(state.delta, boundary, share, overshoot, self.p)
        is_best = (tested.best_norm < state.best_norm) | (state.iteration == 0)
        shorter = tested.best_norm < 0.9999 * state.best_norm
        improved = shorter | (cosine > state.cosine + 1e-3)
        stale = torch.where(improved, 0, state.stale + 1)
        iteration = state.iteration + 1
        at_optimum = (cosine > 0.9999) & tested.best_norm.isfinite()
        vanished = boundary.dual_norm.isinf()
        ended = at_optimum | vanished | (stale > self.patience) | (iteration > self.max_steps)
        state = replace(
            tested,
            delta=clipped(view, state.images, delta),
            best_cosine=cosine.where(is_best, state.best_cosine),
            iteration=iteration,
            stale=stale,
            cosine=torch.maximum(cosine, state.cosine),
            num_queries=tested.num_queries + 1,
            num_steps=tested.num_steps + 1,
            no_gradient=state.no_gradient | (vanished & tested.best_norm.isinf()),
        )
        return Advanced(state, ended)


@dataclass(frozen=True)
class RandomStart(Stage):
    """Starts the method again, in a random direction, at ``length`` times its distance so far.

    Another start may reach another part of the boundary. The direction is a function of the image's
    number and of the start alone.
    """

    p: float
    method: int  # number of the method in `SearchState.distances`
    number: int  # of the start, from 1
    length: float = 0.7
    length_without_distance: float = 0.1  # relative to the image's norm

    def start(self, state: SearchState) -> Advanced:
        """All images leave at once, with their new start."""
        signs = torch.stack(
            [self._signs(key, state.images.shape[1:]) for key in state.key.tolist()]
        )
        signs = signs.to(state.images.dtype).to(state.images.device, non_blocking=True)
        distance = state.distances[:, self.method].to(state.images.dtype)
        fallback = self.length_without_distance * per_sample_norm(state.images, self.p)
        norm = (self.length * distance).where(distance.isfinite(), fallback)
        size = norm / state.images[0].numel() ** (1.0 / self.p)
        state = replace(state.restarted(), delta=signs * expand_to_images(size))
        return Advanced(state, torch.ones_like(state.flipped))

    def _signs(self, key: int, shape: torch.Size) -> Tensor:
        """Random signs, int8 on the CPU."""
        generator = torch.Generator().manual_seed((key << 10) + self.number)
        return 2 * torch.randint(2, shape, generator=generator, dtype=torch.int8) - 1


@dataclass(frozen=True)
class FirstStep(Stage):
    """The start of a descent: DeepFool's first step, towards the nearest linearised boundary.

    A descent that starts without it goes to the class of the second highest logit, which need not
    be the nearest. Where ``best`` (`pipeline.attacks.line_search.LineStart`) is nearer, or there is
    no gradient, the descent starts from ``best``.
    """

    config: AttackConfig  # num_candidates, candidate_search, pruning_factor and norm are used

    def start(self, state: SearchState) -> Advanced:
        """Continue after `LineStart`; images that it has skipped leave."""
        return Advanced(state, state.radius == 0)

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Linearise at the image; all images leave."""
        points = PointsToLinearize.all_of(view.forward_with_grad(state.images, state.key))
        choices = candidate_classes(points.logits, state.label, self.config.num_candidates)
        never = torch.zeros_like(state.flipped)
        candidates = Candidates(state.key, state.label, choices, never)
        step = nearest_boundary(view, points, candidates, self.config)
        vanished = step.gradient_norm.isinf()
        norm = per_sample_norm(step.displacement, float(self.config.norm))
        # Without a gradient or a line, radius 0: the image leaves the descent.
        from_line = (vanished | ~(norm < state.best_norm)) & state.best_norm.isfinite()
        delta = torch.where(expand_to_images(from_line), state.best, step.displacement)
        state = replace(
            state,
            delta=clipped(view, state.images, delta),
            best_norm=state.best_norm.where(from_line, torch.inf),
            radius=state.best_norm.where(from_line, norm),
            num_queries=state.num_queries + step.num_queries + 1,
            no_gradient=state.no_gradient | vanished,
        )
        return Advanced(state, torch.ones_like(never))


@dataclass(frozen=True)
class NormDescent(Stage):
    """Gradient steps at a norm that shrinks while the class is changed and grows while it is not.

    ddn: Rony et al., CVPR 2019; fmn: Pintor et al., NeurIPS 2021. Three things differ from the
    papers: the start (`FirstStep`); lengths are relative to the start's, so that they suit any
    space and net; and the loss is the highest other logit minus the label's, for ddn too: the
    cross-entropy's gradient vanishes where the net is sure, and beside a boundary it mixes in
    further classes.
    """

    kind: str  # ddn or fmn
    p: float
    num_steps: int
    step_size: tuple[float, float] = (1.0, 0.02)  # relative to the radius, by a cosine schedule
    gamma: tuple[float, float] = (0.05, 0.001)  # relative change of the radius, the same

    def start(self, state: SearchState) -> Advanced:
        """Continue from the first step; an image with neither a gradient nor a line leaves."""
        return Advanced(state.at_stage_start(), state.radius == 0)

    @torch.no_grad()
    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """Test the perturbation, take a gradient step, and set its norm."""
        forward = view.forward_with_grad(shifted(view, state.images, state.delta), state.key)
        tested = state.tested(forward.logits.detach(), self.p)
        boundary = linearize_boundary(view, forward, state.label, self.p)
        linearized = boundary.logit_diff.abs() / boundary.dual_norm
        gamma = scheduled(_annealed(self.gamma, self.num_steps), state.iteration, linearized)
        radius = self._radius(tested, state.delta, linearized, gamma)
        step_size = _annealed(self.step_size, self.num_steps)
        size = radius * scheduled(step_size, state.iteration, linearized)
        delta = state.delta + steepest_step(boundary.gradient, boundary.dual_norm, size, self.p)
        delta = clipped(view, state.images, self._at_norm(delta, radius))
        iteration = state.iteration + 1
        state = replace(
            tested.state,
            delta=delta,
            radius=radius,
            iteration=iteration,
            num_queries=tested.state.num_queries + 1,
            num_steps=state.num_steps + 1,
        )
        return Advanced(state, iteration > self.num_steps)

    def _radius(self, tested: Tested, delta: Tensor, linearized: Tensor, gamma: Tensor) -> Tensor:
        """The norm (A,) of the next perturbation; ``linearized`` (A,) is the linearised distance
        from images + delta."""
        state, flips = tested
        shrunk = state.radius * (1.0 - gamma)
        grown = state.radius * (1.0 + gamma)
        if self.kind == "fmn":
            shrunk = torch.minimum(shrunk, state.best_norm)
            # Slightly beyond the linearised boundary, which would only be approached otherwise.
            reached = 1.01 * (per_sample_norm(delta, self.p) + linearized)
            grown = grown.where(state.best_norm.isfinite(), reached)
        return shrunk.where(flips, grown)

    def _at_norm(self, delta: Tensor, radius: Tensor) -> Tensor:
        """ddn: scaled to the radius; fmn: projected onto the ball of this radius."""
        if self.kind == "fmn" and math.isinf(self.p):
            bound = expand_to_images(radius)
            return torch.minimum(torch.maximum(delta, -bound), bound)
        norm = per_sample_norm(delta, self.p)
        factor = radius / norm.where(norm > 0, torch.inf)
        return delta * expand_to_images(factor.clamp_max(1.0) if self.kind == "fmn" else factor)


@cache
def _geometric(ends: tuple[float, float], num_steps: int) -> tuple[float, ...]:
    """From ends[0] to ends[1] in ``num_steps`` steps, geometrically."""
    ratio = ends[1] / ends[0]
    return tuple(ends[0] * ratio ** (n / num_steps) for n in range(num_steps + 1))


@cache
def _annealed(ends: tuple[float, float], num_steps: int) -> tuple[float, ...]:
    """From ends[0] to ends[1] in ``num_steps`` steps, as a cosine."""
    shares = ((1.0 + math.cos(math.pi * n / num_steps)) / 2.0 for n in range(num_steps + 1))
    return tuple(ends[1] + (ends[0] - ends[1]) * share for share in shares)
