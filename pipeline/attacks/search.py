"""The search for the smallest perturbation of an image, in stages.

In: images, or the perturbations of an earlier stage. Out: the shortest perturbation that changes
the class, of each method and of all. A stage advances all its images by one forward pass, and by
one gradient where it needs one, so that a pool can give it full batches.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attacks.attack_state import IterationResult, SampleColumns
from pipeline.attacks.norms import expand_to_images, per_sample_norm
from pipeline.models.attack_view import AttackView

BY_BOUND = -1  # winner where the line to a reference image has the shortest perturbation


@dataclass(frozen=True)
class SearchState(SampleColumns):
    """A images whose smallest perturbation is searched for."""

    key: Tensor  # (A,) int64, the caller's numbers of the images
    images: Tensor  # (A, C, H, W)
    label: Tensor  # (A,) int64, class to leave
    reference: Tensor  # (A,) int64, reference image of another class; -1: none
    # Of the method that is running:
    delta: Tensor  # (A, C, H, W), the perturbation that is tested next
    best: Tensor  # (A, C, H, W), the shortest so far that changes the class
    best_norm: Tensor  # (A,) its norm; infinite: none yet
    best_class: Tensor  # (A,) int64, class at images + best
    best_cosine: Tensor  # (A,) cosine of best and the boundary's normal there; -1: not measured
    iteration: Tensor  # (A,) int64, iterations of the stage
    radius: Tensor  # (A,) length of the next perturbation (norm descent)
    low: Tensor  # (A,) factor on best that is known not to change the class (line search)
    stale: Tensor  # (A,) int64, iterations since best_norm or the cosine has improved
    cosine: Tensor  # (A,) largest cosine in the stage; at the end that of ``smallest``
    # Of all methods so far:
    smallest: Tensor  # (A, C, H, W), the shortest; if none changes the class, the first
    smallest_norm: Tensor  # (A,) float64, its norm
    smallest_class: Tensor  # (A,) int64, class at images + smallest
    winner: Tensor  # (A,) int64, the method that has found ``smallest``, or BY_BOUND
    flipped: Tensor  # (A,) bool, whether ``smallest`` changes the class
    no_gradient: Tensor  # (A,) bool, a method had no gradient to follow
    distances: Tensor  # (A, M) float64, norm by each method; infinite: none
    num_queries: Tensor  # (A,) int64, forward passes and gradients
    num_steps: Tensor  # (A,) int64, iterations of the attacks
    upper_bound: Tensor  # (A,) float64, norm on the line to the reference image; NaN: none

    @classmethod
    def before_attack(
        cls, key: Tensor, images: Tensor, label: Tensor, reference: Tensor, num_methods: int
    ) -> "SearchState":
        """Images that no method has perturbed; their clean forward pass is the first query."""
        zeros = torch.zeros_like(images)
        zero_numbers = images.new_zeros(len(images))
        zero_counts = torch.zeros_like(label)
        all_false = torch.zeros_like(label, dtype=torch.bool)
        return cls(
            key=key,
            images=images,
            label=label,
            reference=reference,
            delta=zeros,
            best=zeros,
            best_norm=torch.full_like(zero_numbers, torch.inf),
            best_class=label,
            best_cosine=torch.full_like(zero_numbers, -1.0),
            iteration=zero_counts,
            radius=zero_numbers,
            low=zero_numbers,
            stale=zero_counts,
            cosine=torch.full_like(zero_numbers, torch.nan),
            smallest=zeros,
            smallest_norm=zero_numbers.double(),
            smallest_class=label,
            winner=torch.full_like(label, BY_BOUND),
            flipped=all_false,
            no_gradient=all_false,
            distances=torch.full(
                (len(images), num_methods), torch.inf, dtype=torch.float64, device=images.device
            ),
            num_queries=torch.ones_like(label),
            num_steps=zero_counts,
            upper_bound=torch.full_like(zero_numbers, torch.nan, dtype=torch.float64),
        )

    @classmethod
    def after_deepfool(
        cls, done: IterationResult, delta: Tensor, reference: Tensor, num_methods: int, p: float
    ) -> "SearchState":
        """Images after DeepFool's last iteration.

        Args:
            done: the iteration, of these images.
            delta: (A, C, H, W), the perturbations, with the overshoot.
            reference: (A,) int64, as in `SearchState`.
            num_methods: number of methods, M.
            p: the norm.
        """
        state = done.state
        return replace(
            cls.before_attack(state.key, state.images, state.label, reference, num_methods),
            delta=delta,
            best=delta,
            best_norm=per_sample_norm(delta, p).where(done.flipped, torch.inf),
            best_class=done.prediction,
            smallest_class=done.prediction,
            no_gradient=done.no_gradient,
            num_queries=state.num_queries,
            num_steps=state.iteration,
        )

    def restarted(self) -> "SearchState":
        """Before a method that starts from the clean images."""
        return replace(
            self,
            delta=torch.zeros_like(self.images),
            best=torch.zeros_like(self.images),
            best_norm=torch.full_like(self.best_norm, torch.inf),
            best_class=self.label,
            best_cosine=torch.full_like(self.best_cosine, -1.0),
        ).at_stage_start()

    def at_stage_start(self) -> "SearchState":
        """Before a stage that continues from the present perturbation."""
        zero = torch.zeros_like(self.iteration)
        return replace(
            self,
            delta=self.delta.contiguous(),
            best=self.best.contiguous(),
            iteration=zero,
            stale=zero,
            low=torch.zeros_like(self.low),
            cosine=torch.full_like(self.cosine, -1.0),
        )

    def tested(self, logits: Tensor, p: float) -> "Tested":
        """After a forward pass of images + delta: ``best`` is the shortest that changes the class.

        Args:
            logits: (A, K) at images + delta.
            p: the norm.
        """
        prediction = logits.argmax(dim=1)
        norm = per_sample_norm(self.delta, p)
        flips = (prediction != self.label) & logits.isfinite().all(dim=1)
        shorter = flips & (norm < self.best_norm)
        state = replace(
            self,
            best=torch.where(expand_to_images(shorter), self.delta, self.best),
            best_norm=norm.where(shorter, self.best_norm),
            best_class=prediction.where(shorter, self.best_class),
            num_queries=self.num_queries + 1,
        )
        return Tested(state, flips)

    def recorded(self, method: int, p: float) -> "SearchState":
        """After a method, or one of its starts, has ended: distances, and the smallest."""
        flips = ~self.best_norm.isinf()  # NaN: a perturbation that is not finite, as it is
        norm = per_sample_norm(self.best.double(), p)
        distances = self.distances.clone()
        distances[:, method] = torch.minimum(distances[:, method], norm.where(flips, torch.inf))
        wins = flips & (~self.flipped | (norm < self.smallest_norm))
        # Nothing changes the class: keep the first perturbation, so that rho has a value.
        last = ~flips & ~self.flipped & (self.smallest_norm == 0)
        norm = norm.where(flips, per_sample_norm(self.delta.double(), p))
        perturbation = torch.where(expand_to_images(wins), self.best, self.delta)
        return replace(
            self,
            smallest=torch.where(expand_to_images(wins | last), perturbation, self.smallest),
            smallest_norm=norm.where(wins | last, self.smallest_norm),
            smallest_class=self.best_class.where(wins, self.smallest_class),
            winner=torch.where(wins, method, self.winner),
            flipped=self.flipped | flips,
            distances=distances,
        )


class Tested(NamedTuple):
    """Images whose perturbation ``delta`` has been tested."""

    state: SearchState
    flips: Tensor  # (A,) bool, whether ``delta`` changes the class


class Advanced(NamedTuple):
    """Images after the start or an iteration of a stage."""

    state: SearchState
    ended: Tensor  # (A,) bool, the images that leave the stage


class Stage:
    """A part of the search."""

    def start(self, state: SearchState) -> Advanced:
        """Prepare images that enter the stage; those that do not need it leave at once."""
        return Advanced(state, torch.zeros_like(state.flipped))

    def advance(self, view: AttackView, state: SearchState) -> Advanced:
        """One iteration; the argument is not changed, so that it can be repeated. Only called where
        images stay after `start`."""
        raise NotImplementedError

    def finish(self, state: SearchState) -> SearchState:
        """Record the results of images that leave the stage."""
        return state


@cache
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


def scheduled(values: tuple[float, ...], iteration: Tensor, like: Tensor) -> Tensor:
    """The values (A,) at iterations (A,), of the type and device of ``like``; the last one beyond.

    Schedules are computed in advance: powers and cosines of tensors differ in the last bits between
    small and large batches.
    """
    return _table(values, like.dtype, like.device)[iteration.clamp_max(len(values) - 1)]


def shifted(view: AttackView, images: Tensor, delta: Tensor) -> Tensor:
    """images + delta, clipped to the view's bounds."""
    return view.clip_(images + delta)


def clipped(view: AttackView, images: Tensor, delta: Tensor) -> Tensor:
    """The perturbation that is left of ``delta`` after clipping, in contiguous memory.

    The last bits of a norm depend on the memory format, and that of gradients on the batch.
    """
    delta = delta if view.bounds is None else shifted(view, images, delta) - images
    return delta.contiguous()
