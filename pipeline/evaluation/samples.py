"""Per-image results, in columns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Results of N images. Norms are in the space and of the p that the protocol states."""

    row: np.ndarray  # (N,) int64, row of the index
    label: np.ndarray  # (N,) int64
    prediction: np.ndarray  # (N,) int64, class at the clean image; -1: its logits are not finite
    label_rank: np.ndarray  # (N,) int64, how many classes have a higher logit than the label
    adversarial: np.ndarray  # (N,) int64, class at the perturbed image
    image_norm: np.ndarray  # (N,) float64, ||x||_p
    perturbation_norm: np.ndarray  # (N,) float64, ||dx||_p
    steps: np.ndarray  # (N,) int64, iterations of the attack
    flipped: np.ndarray  # (N,) bool
    # (N,) bool, left out of rho: no usable gradient, or not flipped by the method of `of_method`
    stuck: np.ndarray
    fgs_correct: np.ndarray  # (N, E) bool, after FGS with each eps of the protocol
    fgs_eps: np.ndarray  # (N,) float64, smallest eps that FGS needs; NaN: not searched for
    # Columns that results of earlier versions lack:
    queries: np.ndarray  # (N,) int64, forward passes and gradients; 0: not counted
    cosine: np.ndarray  # (N,) float64, of dx and the boundary's normal at x + dx; NaN: not measured
    upper_bound: np.ndarray  # (N,) float64, of ||dx||_p, by a line to another image; NaN: none
    winner: np.ndarray  # (N,) int64, number of the method with the shortest dx; -1: the line's
    distances: np.ndarray  # (N, M) float64, ||dx||_p by each of several methods; infinite: none
    image_hash: np.ndarray  # (N,) int64, hash of the decoded image; 0: none
    lower_bound: np.ndarray  # (N,) float64, of the distance in the p-norm; NaN: not measured
    bound_exact: np.ndarray  # (N,) bool, the lower bound is the distance

    @classmethod
    def empty(cls, num_eps: int = 0, num_methods: int = 0) -> "Samples":
        """Results of no image."""
        return cls.from_dict({}, num_eps, num_methods)

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any], num_eps: int, num_methods: int = 0) -> "Samples":
        """Results from columns of numbers or arrays of any type; missing columns become zeros, or
        NaN in those of `EARLIER_VALUES`."""
        num_samples = len(columns.get("row", ()))
        widths = {"fgs_correct": num_eps, "distances": num_methods}
        arrays = {}
        for name in COLUMNS:
            shape = (num_samples, *([widths[name]] if name in widths else []))
            missing = 0 if name in widths else EARLIER_VALUES.get(name, 0)
            values = columns.get(name, np.full(shape, missing))
            arrays[name] = np.asarray(values, column_type(name)).reshape(shape)
        return cls(**arrays)

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], num_eps: int, num_methods: int = 0
    ) -> "Samples":
        """Results from the values of each image; rows of earlier versions lack some columns."""
        rows = [{**EARLIER_VALUES, **row} for row in rows]
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        return cls.from_dict(columns, num_eps, num_methods)

    @classmethod
    def concatenate(cls, parts: Iterable["Samples"]) -> "Samples":
        """Join parts, sorted by row."""
        columns = [part.to_dict() for part in parts]
        joined = cls(**{name: np.concatenate([part[name] for part in columns]) for name in COLUMNS})
        return joined.take(np.argsort(joined.row, kind="stable"))

    def to_dict(self) -> dict[str, np.ndarray]:
        """The columns by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> "Samples":
        """A copy with other values in some columns."""
        return replace(self, **{n: v.astype(column_type(n)) for n, v in columns.items()})

    def take(self, selection: np.ndarray) -> "Samples":
        """Some of the samples, by position or by a mask."""
        return Samples(**{name: column[selection] for name, column in self.to_dict().items()})

    def of_method(self, number: int) -> "Samples":
        """The results with the distances of one method instead of the smallest.

        An image that the method does not flip is marked as without a gradient too, and so left out
        of rho: only perturbations that change the class are stored by method. If the evaluation ran
        one method, images whose distance is that of the line to another image are left out as well.

        Args:
            number: position of the method in the protocol.
        """
        if self.distances.shape[1]:
            distance = self.distances[:, number]
        else:
            is_its_own = self.flipped & (self.winner == number)
            distance = np.where(is_its_own, self.perturbation_norm, np.inf)
        is_missing = np.isinf(distance)
        return self.with_columns(
            {"perturbation_norm": distance, "flipped": ~is_missing, "stuck": is_missing}
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: classified correctly."""
        return self.prediction == self.label

    @property
    def nonfinite(self) -> np.ndarray:
        """(N,) bool: the logits, the image or the perturbation contain NaN or infinity."""
        norms = self.image_norm + self.perturbation_norm
        return (self.prediction < 0) | ~np.isfinite(norms) & ~self.stuck

    @property
    def in_rho(self) -> np.ndarray:
        """(N,) bool: the images that rho2 is the mean over.

        Images that were never flipped are included. Left out are images without a gradient, with
        norm zero, and with numbers that are not finite.
        """
        return ~self.stuck & self.has_ratio

    @property
    def has_ratio(self) -> np.ndarray:
        """(N,) bool: the images whose norm is above zero and whose numbers are finite."""
        return ~self.nonfinite & (self.image_norm > 0)

    @property
    def ratio(self) -> np.ndarray:
        """||dx|| / ||x|| of the images in `in_rho`."""
        selection = self.in_rho
        return self.perturbation_norm[selection] / self.image_norm[selection]

    @property
    def best_norm(self) -> np.ndarray:
        """(N,) float64: the best that is known of the distance. The perturbation's norm, or the
        upper bound where that is smaller or no perturbation changes the class."""
        bound = np.nan_to_num(self.upper_bound, nan=np.inf)
        smaller = np.minimum(bound, np.where(self.flipped, self.perturbation_norm, np.inf))
        return np.where(np.isinf(smaller), self.perturbation_norm, smaller)


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS = tuple(field.name for field in fields(Samples))
# Values of the columns that results of earlier versions lack.
EARLIER_VALUES: dict[str, Any] = {
    "queries": 0,
    "cosine": math.nan,
    "upper_bound": math.nan,
    "winner": 0,
    "distances": [],
    "image_hash": 0,
    "lower_bound": math.nan,
    "bound_exact": False,
}
_FLOATS = (
    *("image_norm", "perturbation_norm", "fgs_eps"),
    *("cosine", "upper_bound", "distances", "lower_bound"),
)
_BOOLEANS = ("flipped", "stuck", "fgs_correct", "bound_exact")
_TYPES: dict[str, type] = {**dict.fromkeys(_FLOATS, float), **dict.fromkeys(_BOOLEANS, bool)}


def column_type(name: str) -> type:
    """The type of a column's values."""
    return _TYPES.get(name, np.int64)


class Example(NamedTuple):
    """One image with its perturbation, for the contact sheet."""

    row: int
    image: np.ndarray  # (C, H, W) float32, in the space of the evaluation
    delta: np.ndarray  # (C, H, W) float32
    before: int  # class at x
    after: int  # class at x + dx


def mean(values: np.ndarray) -> float | None:
    """The mean; None if there are no values."""
    return float(np.mean(values)) if len(values) else None


def quantile(values: np.ndarray, q: float) -> float | None:
    """The quantile q, from 0 to 1; None if there are no values."""
    return float(np.quantile(values, q)) if len(values) else None


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """The quantiles that summaries state."""
    return {f"{q:g}": quantile(values, q) for q in QUANTILES}
