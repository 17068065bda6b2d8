"""How far the distances of an evaluation can be trusted.

In: `Samples`, and the protocol by which they were measured. Out: `Diagnostics`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config import LOW_COSINE
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.samples import Samples, mean, quantile, quantiles
from pipeline.runtime.json_checks import (
    NOTHING,
    NUMBER,
    OBJECT,
    WHOLE_NUMBER,
    Kinds,
    schema_problem,
)

_KINDS: Kinds = {
    "mean_queries": NUMBER,
    **dict.fromkeys(
        ("best", "mean_cosine", "share_below_cosine", "deepfool_over_best"), NUMBER + NOTHING
    ),
    "num_above_bound": WHOLE_NUMBER,
    "methods": OBJECT,
    "lower_bound": OBJECT + NOTHING,
}


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How good the distances are. Ratios are ||dx||_p / ||x||_p."""

    mean_queries: float  # forward passes and gradients of an image
    mean_cosine: float | None  # of dx and the boundary's normal at its end; 1: a smallest dx
    share_below_cosine: float | None  # images with a cosine below `LOW_COSINE`
    # Mean of the smallest known ratio: by any method, or by the line to another image
    best: float | None
    num_above_bound: int  # images whose dx is longer than the point on that line
    deepfool_over_best: float | None  # DeepFool's mean ratio over the best, on images it flips
    methods: dict[str, dict[str, Any]]  # ratios by each of several methods
    lower_bound: dict[str, Any] | None  # lower bounds of the ratios; see `_of_lower_bound`

    def to_dict(self) -> dict[str, Any]:
        """The values that summary.json stores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Diagnostics":
        """Create it from the values of a file; earlier versions did not write lower_bound.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        if isinstance(values, dict):
            values = {"lower_bound": None, **values}
        problem = schema_problem(values, _KINDS)
        for ratios in [] if problem else values["methods"].values():
            problem = problem or schema_problem(ratios, {"mean": NUMBER + NOTHING})
        if problem:
            raise ValueError(f"{problem} of its diagnostics")
        return cls(**{name: values[name] for name in _KINDS})


def diagnose(samples: Samples, protocol: Protocol) -> Diagnostics | None:
    """Diagnostics of at least one sample; None for results of versions without them."""
    if not samples.queries.any():
        return None
    cosine = samples.cosine[~np.isnan(samples.cosine)]
    known = samples.has_ratio & (samples.in_rho | np.isfinite(samples.upper_bound))
    above = samples.flipped & (samples.perturbation_norm > samples.upper_bound)
    names = protocol.method_names
    deepfool = _deepfool_distances(samples, names)
    return Diagnostics(
        mean_queries=float(np.mean(samples.queries[samples.queries > 0])),
        mean_cosine=float(np.mean(cosine)) if len(cosine) else None,
        share_below_cosine=float(np.mean(cosine < LOW_COSINE)) if len(cosine) else None,
        best=mean(samples.best_norm[known] / samples.image_norm[known]),
        num_above_bound=int(np.sum(above & samples.has_ratio)),
        deepfool_over_best=None if deepfool is None else _over_best(samples, deepfool),
        methods={
            name: _of_method(samples, column)
            for name, column in zip(names, samples.distances.T, strict=False)
        },
        lower_bound=_of_lower_bound(samples),
    )


def _deepfool_distances(samples: Samples, names: list[str]) -> np.ndarray | None:
    """||dx||_p (N,) by DeepFool; None if it is not one of the methods ``names``."""
    if "deepfool" not in names:
        return None
    alone = len(names) == 1
    return samples.perturbation_norm if alone else samples.distances[:, names.index("deepfool")]


def _over_best(samples: Samples, distance: np.ndarray) -> float | None:
    """The mean ratio by a method, over that of the best, on the images that it flips."""
    flips = samples.in_rho & samples.flipped & np.isfinite(distance)
    best = mean(samples.best_norm[flips] / samples.image_norm[flips])
    own = mean(distance[flips] / samples.image_norm[flips])
    return own / best if own is not None and best else None


def _of_method(samples: Samples, distance: np.ndarray) -> dict[str, Any]:
    """Mean, median and quantiles of the ratios by one method, over the images that it flips."""
    usable = samples.has_ratio
    flips = usable & np.isfinite(distance)
    ratio = distance[flips] / samples.image_norm[flips]
    smallest = distance[usable] <= samples.best_norm[usable]
    return {
        "mean": mean(ratio),
        "median": quantile(ratio, 0.5),
        "quantiles": quantiles(ratio),
        "num_unflipped": int(np.sum(usable & ~flips)),
        "share_smallest": mean(smallest),
    }


def _of_lower_bound(samples: Samples) -> dict[str, Any] | None:
    """Mean and quantiles of lower_bound / ||x||_p, and the mean of the best known ratio.

    Over the images that have a lower bound and a distance at which their class changes. None if
    there is no such image.
    """
    bounded = np.isfinite(samples.lower_bound) & samples.has_ratio
    changed = (samples.flipped & samples.in_rho) | np.isfinite(samples.upper_bound)
    both = bounded & changed
    if not both.any():
        return None
    ratio = samples.lower_bound[both] / samples.image_norm[both]
    return {
        "mean": mean(ratio),
        "mean_upper": mean(samples.best_norm[both] / samples.image_norm[both]),
        "median": quantile(ratio, 0.5),
        "quantiles": quantiles(ratio),
        "num_images": int(np.sum(both)),
        "num_exact": int(np.sum(samples.bound_exact[both])),
    }
