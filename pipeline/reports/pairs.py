"""The images that two evaluations have in common.

In: two runs of pipeline/evaluate.py. Out: `Pairs`, and a table of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.parse import differences
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, first_few, first_line
from pipeline.evaluation.manifest import Identity
from pipeline.evaluation.samples import Samples
from pipeline.runtime.text_tables import csv_table

from .runs import Run

# FGS changes neither rho nor the accuracy; the nets are what is compared.
_MAY_DIFFER = ("model", "weights", "definition.fgs")


@dataclass(frozen=True)
class EvaluatedImages:
    """The images of one evaluation."""

    label: str
    folder: Path
    ids: np.ndarray  # (N,) str, unique
    samples: Samples
    identity: Identity

    def take(self, selection: np.ndarray) -> "EvaluatedImages":
        """Some of the images, by position."""
        return replace(self, ids=self.ids[selection], samples=self.samples.take(selection))


@dataclass(frozen=True)
class Pairs:
    """The N images that are in both evaluations, in the order of their ids."""

    labels: tuple[str, str]  # of the evaluations; they differ unless the folders are the same
    rho_name: str
    distance: str  # whose distance ``a`` and ``b`` have: one method's, or the smallest of several
    ids: np.ndarray  # (N,) str
    a: Samples
    b: Samples
    num_only_in_a: int
    num_only_in_b: int
    num_without_hash: int  # whose pixels could not be compared

    @property
    def in_rho(self) -> np.ndarray:
        """(N,) bool: the images that both evaluations have a ratio of."""
        return self.a.in_rho & self.b.in_rho

    def ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """||dx|| / ||x|| (N,) in each evaluation; NaN outside of `in_rho`."""
        selection = self.in_rho
        ratio_a, ratio_b = np.full((2, len(self.ids)), np.nan)
        ratio_a[selection] = self.a.take(selection).ratio
        ratio_b[selection] = self.b.take(selection).ratio
        return ratio_a, ratio_b


class ImageChange(NamedTuple):
    """One image in both evaluations."""

    id: str
    label: int
    prediction_a: int
    prediction_b: int
    ratio_a: float | None  # ||dx|| / ||x||; None: at least one evaluation has none
    ratio_b: float | None
    ratio_difference: float | None  # b - a
    flipped_a: bool
    flipped_b: bool


def read(run: Run) -> EvaluatedImages:
    """The images of an evaluation.

    Raises:
        UserError: the run is a fine-tuning, or its samples.parquet is missing or damaged.
    """
    samples, identity = run.samples, run.evaluation.identity
    ids = _read_ids(run.folder / "samples.parquet")
    return EvaluatedImages(run.label, run.folder, ids, samples, identity)


def _read_ids(path: Path) -> np.ndarray:
    try:
        ids = pq.read_table(path, columns=["id"], page_checksum_verification=True)["id"]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{path} has no ids ({first_line(error)}); make it again with tools/report.py merge "
            f"{path.parent}"
        ) from None
    return np.array(ids.to_pylist(), dtype=np.str_)


def pair(a: EvaluatedImages, b: EvaluatedImages, method: str | None = None) -> Pairs:
    """The images that are in both evaluations, by their ids.

    Args:
        a: an evaluation.
        b: the evaluation that is compared with it.
        method: compare the distances by this method, which both evaluations ran, over the images
            that it flips in both; see `Samples.of_method`. None: compare the smallest distances.

    Raises:
        UserError: the evaluations were not made with the same images, preprocessing and protocol
            (FGS may differ, and methods other than ``method``); names each difference. Or an image
            has other pixels in the other evaluation, an id occurs twice, or fewer than two images
            have a ratio in both.
    """
    _check_measured_alike(a, b, method)
    for evaluated in (a, b):
        _refuse_repeated_ids(evaluated)
    ids, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    common_a, common_b = a.take(in_a), b.take(in_b)
    has_hash = _compare_pixels(common_a, common_b)
    have_labels = a.label != b.label
    pairs = Pairs(
        labels=(a.label, b.label) if have_labels else (str(a.folder), str(b.folder)),
        rho_name=a.identity.protocol.rho_name,
        distance=method or _smallest_of(a.identity.protocol.method_names),
        ids=ids,
        a=_samples_of(common_a, method),
        b=_samples_of(common_b, method),
        num_only_in_a=len(a.ids) - len(ids),
        num_only_in_b=len(b.ids) - len(ids),
        num_without_hash=int(np.sum(~has_hash)),
    )
    num_in_rho = int(np.sum(pairs.in_rho))
    if num_in_rho < 2:
        raise UserError(
            f"{a.folder} and {b.folder} both have a ratio of {num_in_rho} images; a comparison "
            "needs at least 2"
        )
    return pairs


def _refuse_repeated_ids(evaluated: EvaluatedImages) -> None:
    names, counts = np.unique(evaluated.ids, return_counts=True)
    repeated = names[counts > 1].tolist()
    if repeated:
        raise UserError(
            f"{evaluated.folder} has several images with the same id ({first_few(repeated)}), so "
            "they cannot be paired; index data sets with equal names under different folders"
        )


def _smallest_of(methods: list[str]) -> str:
    return methods[0] if len(methods) == 1 else f"smallest of {', '.join(methods)}"


def _samples_of(evaluated: EvaluatedImages, method: str | None) -> Samples:
    if method is None:
        return evaluated.samples
    return evaluated.samples.of_method(evaluated.identity.protocol.method_names.index(method))


def _check_measured_alike(a: EvaluatedImages, b: EvaluatedImages, method: str | None) -> None:
    """Refuse evaluations whose distances, or those by ``method``, have other meanings."""
    names_of_a, names_of_b = (run.identity.protocol.method_names for run in (a, b))
    for run, names in ((a, names_of_a), (b, names_of_b)):
        if method is not None and method not in names:
            raise UserError(
                f"{run.folder} has no distances by {method}, but by {', '.join(names)}; "
                f"--method takes a method that both evaluations ran{did_you_mean(method, names)}"
            )
    changed = _changed(a, b, method)
    if changed:
        remedy = "evaluate both with the same options and the same index"
        if any(line.startswith("input.decoder:") for line in changed):
            remedy += ", and decode both alike (--data.decoder cpu)"
        common = [name for name in names_of_a if name in names_of_b]
        comparable = [name for name in common if not _changed(a, b, name)]
        if comparable and method is None:
            remedy += f", or compare one method that both ran: --method {' or '.join(comparable)}"
        raise UserError(
            f"{a.folder} and {b.folder} were measured differently and cannot be compared: "
            f"{'; '.join(changed)}; {remedy}"
        )


def _changed(a: EvaluatedImages, b: EvaluatedImages, method: str | None) -> list[str]:
    """How the identities differ, as far as it matters for the distances of ``method`` (None: the
    smallest)."""
    one, two = _identity_values(a.identity, method), _identity_values(b.identity, method)
    may_differ = _MAY_DIFFER
    if method is not None or one["definition"]["methods"] != two["definition"]["methods"]:
        may_differ = (*_MAY_DIFFER, "definition.measure")  # a sentence about norm and methods
    return differences(one, two, may_differ)


def _identity_values(identity: Identity, method: str | None) -> dict[str, Any]:
    """The values of an identity, with the name and options of each method or of ``method``."""
    values, protocol = identity.to_dict(), identity.protocol
    described = protocol.methods or protocol.method_names
    if method is not None:
        described = [described[protocol.method_names.index(method)]]
    return {**values, "definition": {**values["definition"], "methods": " + ".join(described)}}


def _compare_pixels(a: EvaluatedImages, b: EvaluatedImages) -> np.ndarray:
    """Whether the pixels of each image (N,) could be compared.

    Args:
        a: the common images of an evaluation.
        b: the same images in the other one.

    Raises:
        UserError: an image has other pixels in the other evaluation.
    """
    hash_a, hash_b = a.samples.image_hash, b.samples.image_hash
    has_hash = (hash_a != 0) & (hash_b != 0)
    changed = a.ids[has_hash & (hash_a != hash_b)].tolist()
    if changed:
        raise UserError(
            f"{a.folder} and {b.folder} have other pixels in {len(changed)} of {len(a.ids)} images "
            f"({first_few(changed, 3)}) and cannot be compared: files have changed, or were "
            "decoded on another kind of device or by another version of DALI; evaluate both on the "
            "same files and machine"
        )
    return has_hash


def image_changes(pairs: Pairs) -> list[ImageChange]:
    """All images, those first whose ratio decreased most; images without a ratio are last."""
    ratio_a, ratio_b = pairs.ratios()
    order = np.argsort(ratio_b - ratio_a, kind="stable")  # NaN is last
    columns = (
        *(pairs.ids, pairs.a.label, pairs.a.prediction, pairs.b.prediction),
        *(_nan_as_none(ratio) for ratio in (ratio_a, ratio_b, ratio_b - ratio_a)),
        *(pairs.a.flipped, pairs.b.flipped),
    )
    rows = zip(*(column[order].tolist() for column in columns), strict=True)
    return [ImageChange(*row) for row in rows]


def _nan_as_none(values: np.ndarray) -> np.ndarray:
    optional = values.astype(object)
    optional[np.isnan(values)] = None
    return optional


def as_csv(pairs: Pairs) -> str:
    """A CSV table of `image_changes`, with all digits."""
    return csv_table(ImageChange._fields, image_changes(pairs))
