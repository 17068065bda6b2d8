"""Evaluations in memory, to be compared."""

from pathlib import Path

import numpy as np

from pipeline.evaluation.manifest import Identity
from pipeline.reports.paired_statistics import Resampling
from pipeline.reports.pairs import EvaluatedImages
from tests.helpers.stored_results import manifest, names, samples

FEW = Resampling(num_resamples=200)


def evaluated(
    folder: str, rows: list[int], identity: Identity | None = None, **columns: object
) -> EvaluatedImages:
    return EvaluatedImages(
        folder,
        Path("runs") / folder,
        np.array(names(rows)),
        samples(rows, **columns),
        identity or manifest().identity,
    )
