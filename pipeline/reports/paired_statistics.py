"""Statistics of pairs: two nets measured on the same images.

In: arrays with one entry for each image. Out: confidence intervals and p-values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_BATCH_NUMBERS = 2**20  # random numbers at a time: 8 MiB, and 16 for the resampled values


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How bootstrap intervals are computed."""

    level: float = 0.95  # confidence level, between 0 and 1
    num_resamples: int = 9999
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def mean_difference(a: np.ndarray, b: np.ndarray, options: Resampling) -> Interval:
    """mean(b) - mean(a), with its interval; see `mean_ratio`."""

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return b.mean(axis=axis) - a.mean(axis=axis)

    return _interval(a, b, statistic, options)


def mean_ratio(a: np.ndarray, b: np.ndarray, options: Resampling) -> Interval | None:
    """mean(b) / mean(a), with its percentile bootstrap interval (Efron and Tibshirani, 1993).

    Images are resampled, and both values of an image stay together. BCa intervals are not used:
    they need all means without one image, so time grows with the square of N.

    Args:
        a: (N,) finite values, none negative, of at least two images.
        b: (N,) values of the same images.
        options: level, number of resamples and seed; equal options give equal intervals.

    Returns:
        None if the ratio or its interval is not finite, because means of ``a`` are 0.
    """

    def statistic(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return b.mean(axis=axis) / a.mean(axis=axis)

    with np.errstate(divide="ignore", invalid="ignore"):
        interval = _interval(a, b, statistic, options)
    is_finite = np.isfinite([interval.value, interval.low, interval.high]).all()
    return interval if is_finite else None


def _interval(
    a: np.ndarray, b: np.ndarray, statistic: Callable[..., np.ndarray], options: Resampling
) -> Interval:
    from scipy.stats import bootstrap  # slow to import

    rng = np.random.default_rng(options.seed)
    result = bootstrap(
        (a, b),
        statistic,
        paired=True,
        axis=-1,
        n_resamples=options.num_resamples,
        batch=max(1, _BATCH_NUMBERS // len(a)),
        confidence_level=options.level,
        method="percentile",
        random_state=rng,  # pyright: ignore[reportCallIssue]; scipy below 1.15 has no rng
    )
    low, high = result.confidence_interval
    return Interval(float(statistic(a, b, axis=-1)), float(low), float(high))


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """McNemar's test: whether two classifiers have the same accuracy, from their disagreements.

    The exact, two-sided test: without a difference, the number of discordant images that only the
    first one classifies correctly is binomial with probability 1/2 (McNemar, Psychometrika 1947).

    Args:
        num_only_a: images that only the first classifier classifies correctly.
        num_only_b: images that only the second one does.

    Returns:
        The p-value; 1 without a discordant image.
    """
    from scipy.stats import binom  # slow to import

    num_discordant = num_only_a + num_only_b
    tail = binom.cdf(min(num_only_a, num_only_b), num_discordant, 0.5)
    return min(1.0, 2 * float(tail))
