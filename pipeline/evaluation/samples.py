"""Per-image results, in columns."""

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
    steps: np.ndarray  # (N,) int64, DeepFool iterations
    flipped: np.ndarray  # (N,) bool
    stuck: np.ndarray  # (N,) bool, the gradient vanished or was not finite
    fgs_correct: np.ndarray  # (N, E) bool, after FGS with each eps of the protocol
    fgs_eps: np.ndarray  # (N,) float64, smallest eps that FGS needs; NaN: not searched for

    @classmethod
    def empty(cls, num_eps: int = 0) -> "Samples":
        """Results of no image."""
        return cls.from_dict({}, num_eps)

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any], num_eps: int) -> "Samples":
        """Results from columns of numbers or arrays of any type; missing columns become zeros."""
        num_samples = len(columns.get("row", ()))
        arrays = {}
        for name in COLUMNS:
            shape = (num_samples, num_eps) if name == "fgs_correct" else (num_samples,)
            values = columns.get(name, np.zeros(shape))
            arrays[name] = np.asarray(values, column_type(name)).reshape(shape)
        return cls(**arrays)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], num_eps: int) -> "Samples":
        """Results from the values of each image."""
        return cls.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, num_eps)

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
        return ~self.stuck & ~self.nonfinite & (self.image_norm > 0)

    @property
    def ratio(self) -> np.ndarray:
        """||dx|| / ||x|| of the images in `in_rho`."""
        selection = self.in_rho
        return self.perturbation_norm[selection] / self.image_norm[selection]


COLUMNS = tuple(field.name for field in fields(Samples))
_TYPES: dict[str, type] = {
    **dict.fromkeys(("image_norm", "perturbation_norm", "fgs_eps"), float),
    **dict.fromkeys(("flipped", "stuck", "fgs_correct"), bool),
}


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
