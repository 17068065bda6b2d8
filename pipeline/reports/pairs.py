"""The images that two evaluations have in common.

In: two runs of pipeline/evaluate.py. Out: `Pairs`, and a table of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.parse import differences
from pipeline.errors import UserError, first_line
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


@dataclass(frozen=True)
class Pairs:
    """The N images that are in both evaluations, in the order of their ids."""

    labels: tuple[str, str]  # of the evaluations; they differ unless the folders are the same
    rho_name: str
    ids: np.ndarray  # (N,) str
    a: Samples
    b: Samples
    num_only_in_a: int
    num_only_in_b: int

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


def pair(a: EvaluatedImages, b: EvaluatedImages) -> Pairs:
    """The images that are in both evaluations, by their ids.

    Raises:
        UserError: the evaluations were not made with the same images, preprocessing and protocol
            (FGS may differ); names each difference. Or fewer than two images have a ratio in both.
    """
    changed = differences(a.identity.to_dict(), b.identity.to_dict(), _MAY_DIFFER)
    if changed:
        raise UserError(
            f"{a.folder} and {b.folder} were measured differently and cannot be compared: "
            f"{'; '.join(changed)}; evaluate both with the same options and the same index"
        )
    ids, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    have_labels = a.label != b.label
    pairs = Pairs(
        (a.label, b.label) if have_labels else (str(a.folder), str(b.folder)),
        a.identity.protocol.rho_name,
        ids,
        a.samples.take(in_a),
        b.samples.take(in_b),
        num_only_in_a=len(a.ids) - len(ids),
        num_only_in_b=len(b.ids) - len(ids),
    )
    num_in_rho = int(np.sum(pairs.in_rho))
    if num_in_rho < 2:
        raise UserError(
            f"{a.folder} and {b.folder} both have a ratio of {num_in_rho} images; a comparison "
            "needs at least 2"
        )
    return pairs


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
