"""Minimal-norm attacks of foolbox and adversarial-library on the net of this project.

In: an import path, options, an attack view and images. Out: `ExternalResult`. These libraries take
images in [0, 1]. In a bounded space that is the interval of the bounds. An unbounded space is
mapped to [0, 1] linearly, with room on both sides. An image whose result touches an end, or whose
class did not change, is attacked again with a wider interval. So the result is the distance without
bounds. Options that are lengths, such as DDN's init_norm, are in units of [0, 1]: multiplied by
`unbounded_widths` they are in units of the space.

An image's result does not depend on the rest of its batch, up to rounding. Attacks that are known
to treat the images of a batch apart get the batch at once, all others one image at a time. Random
numbers always start from the same seed, and an image that they affected is attacked by itself.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.attacks.counting_model import CountingModel, UnitRange, unbounded_widths
from pipeline.attacks.library_attacks import METHOD, load
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import upcast
from pipeline.runtime import allocator
from pipeline.runtime.importing import describe_exception

_SEED = 0
# How often the interval of an unbounded space is doubled for an image that it may have limited.
_DOUBLINGS = 3


@dataclass(frozen=True)
class ExternalResult:
    """Perturbations of a batch of N images; zero where the attack found none."""

    delta: Tensor  # (N, C, H, W), in the space of the view
    flipped: Tensor  # (N,) bool, whether the class at x + delta differs from the label
    prediction: Tensor  # (N,) int64, class at x + delta
    num_forwards: Tensor  # (N,) int64, forward passes by the attack
    num_gradients: Tensor  # (N,) int64, gradients by the attack


@dataclass(frozen=True)
class _Batch:
    """N images under attack, and what has been computed for them."""

    images: Tensor  # (N, C, H, W), in the space of the view
    labels: Tensor  # (N,)
    delta: Tensor  # (N, C, H, W)
    num_forwards: Tensor  # (N,) int64
    num_gradients: Tensor  # (N,) int64

    def add_queries(self, rows: Tensor, model: CountingModel, part: Tensor | None = None) -> None:
        """Add the queries of the images of a model, or of part of them, (R,) bool, to rows (R,)."""
        part = torch.ones_like(rows, dtype=torch.bool) if part is None else part
        self.num_forwards[rows[part]] += model.num_forwards[part]
        self.num_gradients[rows[part]] += model.num_gradients[part]

    @torch.no_grad()
    def flipped(self, view: AttackView, rows: Tensor) -> Tensor:
        """(R,) bool, whether the class at x + delta differs from the label, for rows (R,)."""
        return view(self.images[rows] + self.delta[rows]).argmax(dim=1) != self.labels[rows]


class ExternalAttack:
    """An attack of another library, with its options."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        """Import the attack and check its options; see `pipeline.attacks.library_attacks.load`.

        Raises:
            UserError: the attack cannot be used, or does not take an option.
        """
        self._attack = load(path, options)

    @property
    def norm(self) -> float | None:
        """p of the norm that the attack minimises; None: not known."""
        return self._attack.norm

    def perturb(self, view: AttackView, images: Tensor, labels: Tensor) -> ExternalResult:
        """Small perturbations after which images are no longer classified as their labels.

        Args:
            view: the net.
            images: (N, C, H, W), in the space of the view.
            labels: (N,) classes to leave. An image of another class is returned unchanged.

        Raises:
            UserError: the attack failed; names it and its exception.
        """
        images = upcast(images.detach())
        count = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        batch = _Batch(images, labels, torch.zeros_like(images), count, count.clone())
        prediction = labels.clone()
        if len(images):
            with _without_parameter_gradients(view.net), torch.enable_grad():
                self._perturb_all(view, batch)
            with torch.no_grad():
                prediction = view(images + batch.delta).argmax(dim=1)
        return ExternalResult(
            delta=batch.delta,
            flipped=prediction != labels,
            prediction=prediction,
            num_forwards=batch.num_forwards,
            num_gradients=batch.num_gradients,
        )

    def _perturb_all(self, view: AttackView, batch: _Batch) -> None:
        """Attack all images; those of an unbounded space in groups of equal intervals."""
        if view.bounds is not None:
            rows = torch.arange(len(batch.labels), device=batch.labels.device)
            self._perturb_rows(view, UnitRange.of_bounds(view.bounds), batch, rows)
            return
        widths = unbounded_widths(batch.images)
        for width in widths.unique().tolist():
            rows = (widths == width).nonzero().squeeze(1)
            for doubling in range(_DOUBLINGS + 1):
                unit_range = UnitRange.around_zero(width * 2**doubling)
                limited = self._perturb_rows(view, unit_range, batch, rows)
                limited |= ~batch.flipped(view, rows)
                rows = rows[limited]
                if len(rows) == 0:
                    break

    def _perturb_rows(
        self, view: AttackView, unit_range: UnitRange, batch: _Batch, rows: Tensor
    ) -> Tensor:
        """Attack rows (R,) of a batch; returns whether their results touch an end, (R,) bool."""
        images, labels = batch.images[rows], batch.labels[rows]
        unit = unit_range.to_unit(images)
        adversarial = unit.clone()
        one_by_one = torch.ones_like(rows, dtype=torch.bool)
        if self._attack.batched:
            model = CountingModel(view, unit_range, unit, every_gradient=False)
            adversarial, used_random_numbers = self._call(model, unit, labels)
            affected = model.lost_gradient if self._attack.noise_without_gradient else one_by_one
            one_by_one = affected & used_random_numbers
            batch.add_queries(rows, model, ~one_by_one)
        for n in one_by_one.nonzero().squeeze(1).tolist():
            one = slice(n, n + 1)
            model = CountingModel(view, unit_range, unit[one], every_gradient=True)
            adversarial[one], _ = self._call(model, unit[one], labels[one])
            batch.add_queries(rows[one], model)
        # Rounded by the map, an unchanged image would seem perturbed.
        perturbed = (adversarial != unit).flatten(1).any(dim=1)
        perturbed &= adversarial.isfinite().flatten(1).all(dim=1)
        delta = unit_range.from_unit(adversarial).to(images.dtype) - images
        batch.delta[rows[perturbed]] = delta[perturbed]
        return ((adversarial <= 0) | (adversarial >= 1)).flatten(1).any(dim=1)

    def _call(self, model: CountingModel, images: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
        """The adversarial images, and whether random numbers were drawn."""
        try:
            with _fixed_seed(images.device):
                before = _random_states(images.device)
                adversarial = self._attack.function(model, images.clone(), labels.clone()).detach()
                draws = _random_states(images.device) != before
        except Exception as error:
            if isinstance(error, UserError) or allocator.is_out_of_memory(error):
                raise  # the caller attacks fewer images at once
            message = f"{METHOD}: {self._attack.path} failed: {describe_exception(error)}"
            raise UserError(message) from None
        if adversarial.shape != images.shape:
            raise UserError(
                f"{METHOD}: {self._attack.path} must return adversarial inputs of the shape "
                f"{tuple(images.shape)}, got {tuple(adversarial.shape)}"
            )
        return adversarial, draws


@contextmanager
def _without_parameter_gradients(net: nn.Module) -> Iterator[None]:
    """A net whose parameters need no gradients: foolbox would add to those of training."""
    frozen = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = True


@contextmanager
def _fixed_seed(device: torch.device) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from a fixed seed; afterwards as before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        np.random.seed(_SEED)
        random.seed(_SEED)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _random_states(device: torch.device) -> list[Any]:
    """Values that change when a random number is drawn."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    numpy_state = np.random.get_state(legacy=False)
    return [*(state.tolist() for state in states), str(numpy_state), random.getstate()]
