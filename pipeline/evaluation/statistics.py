"""The statistics of an evaluation: accuracy, rho2, quantiles, FGS, results of each class.

In: `Samples`, and the protocol by which they were measured. Out: `Statistics`.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import EPS_REF_FRACTIONS
from pipeline.evaluation.diagnostics import Diagnostics, diagnose
from pipeline.evaluation.protocol import FgsProtocol, Protocol
from pipeline.evaluation.samples import Samples, mean, quantile, quantiles
from pipeline.runtime.json_checks import (
    LIST,
    NOTHING,
    NUMBER,
    OBJECT,
    WHOLE_NUMBER,
    Kinds,
    schema_problem,
)

_SHARE_TO_WARN_OF = 0.01
_SHARE_OF_METHOD_TO_WARN_OF = 0.1
_SHORTENING_TO_WARN_OF = 0.2
_FGS_KINDS: Kinds = {
    "accuracy": LIST,
    "reference": NUMBER + NOTHING,
    "at_reference": OBJECT + NOTHING,
    "eps_ref": NUMBER + NOTHING,
}
_COUNTS = (
    "num_samples",
    "num_correct",
    "num_unflipped",
    "num_without_gradient",
    "num_zero_images",
    "num_nonfinite",
)


class FgsAccuracy(NamedTuple):
    """The accuracy after FGS with one eps."""

    eps: float
    accuracy: float
    num_correct: int


@dataclass(frozen=True, kw_only=True)
class FgsStatistics:
    """The results of FGS."""

    accuracy: list[FgsAccuracy]
    reference: float | None  # the eps_ref of another model
    at_reference: dict[str, float] | None  # accuracy at fractions of ``reference``
    searched: bool  # whether the smallest eps was searched for
    eps_ref: float | None  # see `eps_ref`

    def to_dict(self) -> dict[str, Any]:
        """The values that summary.json stores."""
        values: dict[str, Any] = {"accuracy": [entry._asdict() for entry in self.accuracy]}
        if self.reference is not None:
            values |= {"reference": self.reference, "at_reference": self.at_reference}
        if self.searched:
            values["eps_ref"] = self.eps_ref
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "FgsStatistics":
        """Create it from the values of a file.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        optional = dict.fromkeys(("reference", "at_reference", "eps_ref"))
        problem = schema_problem({**optional, **values}, _FGS_KINDS)
        entries = values.get("accuracy", [])
        for entry in entries if isinstance(entries, list) else []:
            problem = problem or schema_problem(entry, {"eps": NUMBER, "accuracy": NUMBER})
        if problem:
            raise ValueError(f"{problem} of FGS")
        return cls(
            accuracy=[FgsAccuracy(e["eps"], e["accuracy"], e["num_correct"]) for e in entries],
            reference=values.get("reference"),
            at_reference=values.get("at_reference"),
            searched="eps_ref" in values,
            eps_ref=values.get("eps_ref"),
        )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Everything that is reported of an evaluation except its per-image results."""

    accuracy: float
    top5_accuracy: float
    rho: float | None  # mean of `Samples.ratio`, None of no image; stored under ``rho_name``
    rho_name: str
    ratio_median: float | None
    ratio_quantiles: dict[str, float | None]
    num_samples: int
    num_correct: int
    num_unflipped: int
    num_without_gradient: int
    num_zero_images: int
    num_nonfinite: int
    mean_steps: float
    fgs: FgsStatistics | None
    diagnostics: Diagnostics | None

    def to_dict(self) -> dict[str, Any]:
        """The values that summary.json and the history of a fine-tuning store."""
        values: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name == "rho":
                values[self.rho_name] = value
            elif name not in ("rho_name", "fgs", "diagnostics"):
                values[name] = value
        if self.fgs is not None:
            values["fgs"] = self.fgs.to_dict()
        if self.diagnostics is not None:
            values["diagnostics"] = self.diagnostics.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Any, rho_name: str) -> "Statistics":
        """Create it from the values of a file; earlier versions did not write num_nonfinite.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        kinds: Kinds = {
            "accuracy": NUMBER,
            **dict.fromkeys((rho_name, "ratio_median"), NUMBER + NOTHING),
            **dict.fromkeys(("top5_accuracy", "mean_steps"), NUMBER),
            "ratio_quantiles": OBJECT,
            **dict.fromkeys(_COUNTS, WHOLE_NUMBER),
            **dict.fromkeys(("fgs", "diagnostics"), OBJECT + NOTHING),
        }
        if isinstance(values, dict):
            values = {"num_nonfinite": 0, "fgs": None, "diagnostics": None, **values}
        problem = schema_problem(values, kinds)
        if problem:
            raise ValueError(problem)
        names = {field.name for field in fields(cls)} - {"rho", "rho_name", "fgs", "diagnostics"}
        fgs, diagnostics = values["fgs"], values["diagnostics"]
        return cls(
            **{name: values[name] for name in names},
            rho=values[rho_name],
            rho_name=rho_name,
            fgs=None if fgs is None else FgsStatistics.from_dict(fgs),
            diagnostics=None if diagnostics is None else Diagnostics.from_dict(diagnostics),
        )


def summarize(samples: Samples, protocol: Protocol) -> Statistics:
    """The statistics of at least one sample."""
    ratio, in_rho, nonfinite = samples.ratio, samples.in_rho, samples.nonfinite
    return Statistics(
        accuracy=float(np.mean(samples.correct)),
        top5_accuracy=float(np.mean(samples.label_rank < 5)),
        rho=mean(ratio),
        rho_name=protocol.rho_name,
        ratio_median=quantile(ratio, 0.5),
        ratio_quantiles=quantiles(ratio),
        num_samples=len(samples),
        num_correct=int(np.sum(samples.correct)),
        num_unflipped=int(np.sum(~samples.flipped & in_rho)),
        num_without_gradient=int(np.sum(samples.stuck & ~nonfinite)),
        num_zero_images=int(np.sum(~in_rho & ~samples.stuck & ~nonfinite)),
        num_nonfinite=int(np.sum(nonfinite)),
        mean_steps=float(np.mean(samples.steps)),
        fgs=None if protocol.fgs is None else _fgs_statistics(samples, protocol.fgs),
        diagnostics=diagnose(samples, protocol),
    )


def _fgs_statistics(samples: Samples, fgs: FgsProtocol) -> FgsStatistics:
    counts = samples.fgs_correct.sum(axis=0).tolist()
    accuracy = [
        FgsAccuracy(eps, count / len(samples), count)
        for eps, count in zip(fgs.eps, counts, strict=True)
    ]
    at_reference = None
    if fgs.reference is not None:
        by_eps = {entry.eps: entry.accuracy for entry in accuracy}
        at_reference = {f"{f:g}": by_eps[f * fgs.reference] for f in EPS_REF_FRACTIONS}
    return FgsStatistics(
        accuracy=accuracy,
        reference=fgs.reference,
        at_reference=at_reference,
        searched=fgs.search,
        eps_ref=eps_ref(samples) if fgs.search else None,
    )


def nonfinite_warning(statistics: Statistics) -> str:
    """A warning for an evaluation during training with numbers that are not finite; or empty."""
    if not statistics.num_nonfinite:
        return ""
    return (
        f"{statistics.num_nonfinite} of {statistics.num_samples} images have logits or "
        "perturbations that are not finite (NaN or infinity) and are not in the mean; try a lower "
        "optim.lr"
    )


def distance_warnings(statistics: Statistics) -> Iterator[str]:
    """Signs that distances are overstated: of masked gradients, or of a curved boundary."""
    diagnostics, total = statistics.diagnostics, statistics.num_samples
    if statistics.rho is None:
        yield f"none of {total} images has a distance: {statistics.rho_name} is not defined"
    if diagnostics is None:
        return
    remedy = (
        "their distances are too large or missing, as with masked gradients; measure with "
        "evaluation.attack.method best. To find the cause try evaluation.attack.restarts 5 with "
        "superdeepfool, and evaluation.attack.step_direction loss_gradient: docs/evaluation.md"
    )
    if statistics.num_without_gradient > _SHARE_TO_WARN_OF * total:
        number = statistics.num_without_gradient
        yield f"{number} of {total} images had no gradient to follow: {remedy}"
    if statistics.num_unflipped > _SHARE_TO_WARN_OF * total:
        number = statistics.num_unflipped
        yield (
            f"the class of {number} of {total} images did not change within the attack's "
            f"iterations: {remedy}"
        )
    for name, ratios in diagnostics.methods.items():
        number = ratios.get("num_unflipped", 0)
        if number > _SHARE_OF_METHOD_TO_WARN_OF * total:
            yield (
                f"{name} found no perturbation for {number} of {total} images; its mean is over "
                "the others"
            )
    if diagnostics.num_above_bound:
        yield (
            f"the perturbations of {diagnostics.num_above_bound} of {total} images are longer than "
            f"the way to the boundary on the line to another image: {remedy}"
        )
    over = diagnostics.deepfool_over_best
    if over is not None and over > 0 and 1.0 - 1.0 / over > _SHORTENING_TO_WARN_OF:
        yield (
            f"DeepFool's mean distance is {over:.3g} times the best known; quote the best, and see "
            "docs/evaluation.md for the causes"
        )


def eps_ref(samples: Samples) -> float | None:
    """The paper's eps_ref: the smallest eps after which at most half of the images are correct.

    None if at most half of the clean images are correct, or if no eps of the search suffices.
    """
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
                "mean_ratio": mean(part.ratio),
                "median_ratio": quantile(part.ratio, 0.5),
            }
        )
    return rows
