"""Which samples of a batch the regulariser measures, and how often each of them counts.

In: the classes of a batch, and uniform random numbers. Out: `Selection`.

The gradient of a sample's term R by its ratio r is c exp(-c r) in T and d exp(d r) in F (form exp;
`pipeline.regularizer.penalty.slopes` has the others). On ImageNet (c 500, d 5) the gradients of F
are about fifty times smaller, but F takes more iterations of the attack. So a sample of F is
measured with a probability in proportion to its expected gradient, and counts 1 / probability
times: the expected value of the term and of its gradient are those of all samples.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config import RegularizerConfig
from pipeline.regularizer.penalty import slopes
from pipeline.runtime.seeds import derive_seed

# Probability where the expected gradients in T and F are equal: above 1, so that a measured sample
# of F, with its weight, stays smaller than one of T.
_SAFETY = 2.0
# A larger probability is taken as 1: it would save little and add noise. On CIFAR-10 (c 25) 0.78
# saved nothing measurable, and three nets had 1 to 2 % smaller distances after training.
_LARGEST = 0.5
_STREAM = 2  # separates these random numbers from others of the same seed and step


class Selection(NamedTuple):
    """The samples of a batch of N that are measured."""

    rows: Tensor  # (A,) int64, their positions
    weight: Tensor  # (N,) 1 / probability of these; 0 for the others


def uniform_numbers(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Random numbers (batch_size,) in [0, 1) for the positions of an optimiser step's batch.

    They do not depend on how ranks and passes divide the batch.
    """
    return np.random.default_rng(derive_seed(seed, step, _STREAM)).random(batch_size)


def probability_in_f(config: RegularizerConfig, typical_ratio: float) -> float:
    """Probability with which a misclassified sample is measured.

    Args:
        config: the form, c, d, smallest_share and min_probability are used.
        typical_ratio: the mean ratio ||dx|| / ||x||, as of the last evaluation.
    """
    in_t, in_f = slopes(config, typical_ratio)
    if config.smallest_share < 1.0 or _SAFETY * in_f >= in_t:
        return 1.0
    probability = max(config.min_probability, _SAFETY * in_f / in_t)
    return probability if probability <= _LARGEST else 1.0


def select_all(images: Tensor) -> Selection:
    """All images (N, ...) of a batch, once each."""
    rows = torch.arange(len(images), device=images.device)
    return Selection(rows, torch.ones(len(images), device=images.device))


def select_correct(correct: Tensor) -> Selection:
    """All samples of T, ``correct`` (N,) bool, once each, and none of F."""
    return Selection(correct.nonzero().squeeze(1), correct.float())


def select(correct: Tensor, uniform: Tensor, probability: float) -> Selection:
    """Measure all of T, and samples of F with a probability.

    Args:
        correct: (N,) bool, in T.
        uniform: (N,) float64 random numbers in [0, 1).
        probability: of a sample of F, above 0.
    """
    taken = correct | (uniform < probability)
    weight = torch.where(correct, 1.0, 1.0 / probability).where(taken, 0.0)
    return Selection(taken.nonzero().squeeze(1), weight)
