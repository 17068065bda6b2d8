"""Per-image results in columns, and the statistics that are reported.

In: `Samples`, and the definition they were measured by. Out: accuracy, rho2, quantiles, FGS
accuracies, results of each class.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import EPS_REF_FRACTIONS

KINDS: dict[str, type] = {"image_norm": float, "perturbation_norm": float, "fgs_eps": float}
KINDS |= {"flipped": bool, "stuck": bool, "fgs_correct": bool}

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Samples:
    """Results of N images. Norms are in the space and of the p that the definition says."""

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
    fgs_correct: np.ndarray  # (N, E) bool, after FGS with each eps of the definition
    fgs_eps: np.ndarray  # (N,) float64, smallest eps that FGS needs; NaN: not searched for

    @classmethod
    def concat(cls, parts: Iterable["Samples"]) -> "Samples":
        """Join parts, sorted by row."""
        parts = list(parts)
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        by_row = np.argsort(columns["row"], kind="stable")
        return cls(**columns).take(by_row)

    @classmethod
    def of_columns(cls, columns: dict[str, Any], num_eps: int) -> "Samples":
        """From plain values or arrays of any kind; columns that are not given are zeros."""
        number = len(columns.get("row", ()))
        arrays = {}
        for name in (field.name for field in fields(cls)):
            shape = (number, num_eps) if name == "fgs_correct" else (number,)
            values = np.asarray(columns.get(name, np.zeros(shape)), KINDS.get(name, np.int64))
            arrays[name] = values.reshape(shape)
        return cls(**arrays)

    def with_columns(self, columns: dict[str, np.ndarray]) -> "Samples":
        """With other values in some columns."""
        kinds = {name: getattr(self, name).dtype for name in columns}
        return replace(self, **{name: v.astype(kinds[name]) for name, v in columns.items()})

    @classmethod
    def empty(cls, num_eps: int = 0) -> "Samples":
        """No results yet."""
        return cls.of_columns({}, num_eps)

    def take(self, chosen: np.ndarray) -> "Samples":
        """Some of the samples: positions, or a mask."""
        return Samples(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.row)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: classified correctly."""
        return self.prediction == self.label

    @property
    def nonfinite(self) -> np.ndarray:
        """(N,) bool: the logits, the image or the perturbation hold NaN or infinity."""
        norms = self.image_norm + self.perturbation_norm
        return (self.prediction < 0) | ~np.isfinite(norms) & ~self.stuck

    @property
    def in_rho(self) -> np.ndarray:
        """(N,) bool: what rho2 is the mean over. All, never flipped ones too, but those without a
        gradient, images of norm zero, and where numbers are not finite."""
        return ~self.stuck & ~self.nonfinite & (self.image_norm > 0)

    @property
    def ratio(self) -> np.ndarray:
        """||dx|| / ||x|| of those that are counted."""
        chosen = self.in_rho
        return self.perturbation_norm[chosen] / self.image_norm[chosen]


class Example(NamedTuple):
    """One image with its perturbation, for the contact sheet."""

    row: int
    image: np.ndarray  # (C, H, W) float32, in the space of the evaluation
    delta: np.ndarray  # (C, H, W) float32
    before: int  # class at x
    after: int  # class at x + dx


def rho_name(definition: dict[str, Any]) -> str:
    """rho2, rho_inf, rho1.5: the mean ratio in the norm of the definition."""
    name = definition["norm"]
    return f"rho_{name}" if name == "inf" else f"rho{name}"


def summarize(samples: Samples, definition: dict[str, Any]) -> dict[str, Any]:
    """Everything that is reported of an evaluation but its per-image results.

    Args:
        samples: at least one.
        definition: of `pipeline.evaluation.protocol.evaluation_protocol`.
    """
    ratio, counted, nonfinite = samples.ratio, samples.in_rho, samples.nonfinite
    summary = {
        "accuracy": float(np.mean(samples.correct)),
        "top5_accuracy": float(np.mean(samples.label_rank < 5)),
        rho_name(definition): _mean(ratio),
        "ratio_median": _quantile(ratio, 0.5),
        "ratio_quantiles": {f"{q:g}": _quantile(ratio, q) for q in QUANTILES},
        "num_samples": len(samples),
        "num_correct": int(np.sum(samples.correct)),
        "num_unflipped": int(np.sum(~samples.flipped & counted)),
        "num_without_gradient": int(np.sum(samples.stuck & ~nonfinite)),
        "num_zero_images": int(np.sum(~counted & ~samples.stuck & ~nonfinite)),
        "num_nonfinite": int(np.sum(nonfinite)),
        "mean_steps": float(np.mean(samples.steps)),
    }
    if definition["fgs"]:
        summary["fgs"] = _summarize_fgs(samples, definition["fgs"])
    return summary


def nonfinite_warning(summary: dict[str, Any]) -> str:
    """A line for an evaluation in training in which numbers were not finite; else empty."""
    if not summary["num_nonfinite"]:
        return ""
    return (
        f"{summary['num_nonfinite']} of {summary['num_samples']} images have logits or "
        "perturbations that are not finite (NaN or infinity) and are not in the mean; try a lower "
        "optim.lr"
    )


def _summarize_fgs(samples: Samples, fgs: dict[str, Any]) -> dict[str, Any]:
    counts = samples.fgs_correct.sum(axis=0).tolist()
    measured = [
        {"eps": eps, "accuracy": count / len(samples), "num_correct": count}
        for eps, count in zip(fgs["eps"], counts, strict=True)
    ]
    summary: dict[str, Any] = {"accuracy": measured}
    reference = fgs["reference"]
    if reference is not None:
        accuracies = {entry["eps"]: entry["accuracy"] for entry in measured}
        summary["reference"] = reference
        summary["at_reference"] = {f"{f:g}": accuracies[f * reference] for f in EPS_REF_FRACTIONS}
    if fgs["search"]:
        summary["eps_ref"] = eps_ref(samples)
    return summary


def eps_ref(samples: Samples) -> float | None:
    """The smallest eps at which FGS leaves at most half of the images classified correctly (the
    paper's eps_ref); None if fewer are at the clean images, or if no eps of the lattice does."""
    num_to_fail = math.ceil(len(samples) / 2)
    eps = np.sort(samples.fgs_eps)[num_to_fail - 1]
    return float(eps) if 0 < eps < np.inf else None


def accuracy_at(samples: Samples, eps: float) -> float:
    """Accuracy after FGS with any eps, from the smallest eps that each image needs."""
    return float(np.mean(samples.fgs_eps > eps))


def by_class(samples: Samples, names: list[str]) -> list[dict[str, Any]]:
    """One row for each class that has images."""
    rows = []
    for label in np.unique(samples.label).tolist():
        part = samples.take(samples.label == label)
        rows.append(
            {
                "label": label,
                "name": names[label] if label < len(names) else str(label),
                "num_samples": len(part),
                "accuracy": float(np.mean(part.correct)),
                "top5_accuracy": float(np.mean(part.label_rank < 5)),
                "mean_ratio": _mean(part.ratio),
                "median_ratio": _quantile(part.ratio, 0.5),
            }
        )
    return rows


def _mean(values: np.ndarray) -> float:
    """0 where there is nothing to take the mean of; the counts beside it say so."""
    return float(np.mean(values)) if len(values) else 0.0


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else 0.0
