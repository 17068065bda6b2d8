"""The files of a merged evaluation: its summary, tables of images and classes, its records.

In: what `pipeline.evaluation.merge.merging` returns. Out: OUTPUT/summary.json,
samples.parquet, classes.csv, curve.csv, curve_relative.csv, metrics.jsonl; and the records of
the trackers that OUTPUT/config.yaml names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import LOW_COSINE
from pipeline.errors import UserError, first_line
from pipeline.evaluation import contact_sheet, curves
from pipeline.evaluation.manifest import IDENTITY_KINDS, Identity
from pipeline.evaluation.merge import Merged, unwritable_remedy
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.samples import COLUMNS, EARLIER_VALUES, Samples
from pipeline.evaluation.shard_results import StoredResults
from pipeline.evaluation.statistics import Statistics, by_class, distance_warnings, summarize
from pipeline.runtime import config_file
from pipeline.runtime.files import atomic_write, report_unwritable, write_json
from pipeline.runtime.json_checks import (
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE_NUMBER,
    Kinds,
    schema_problem,
)
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.text_tables import short_number, write_csv

_METADATA_KEY = b"deep_defense_samples"
_KINDS: Kinds = {
    "num_missing": WHOLE_NUMBER,
    "skipped": LIST,
    "batch_difference": NUMBER,
    "no_lower_bound": TEXT,
    "runs": LIST,
}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json of an evaluation."""

    statistics: Statistics
    num_missing: int
    skipped: list[str]  # ids of the images that did not decode
    batch_difference: float  # the largest difference of results between batches
    no_lower_bound: str  # why evaluation.lower_bound measured nothing; empty: it did, or was false
    identity: Identity
    runs: list[dict[str, Any]]  # records of the jobs that ended: images, seconds, versions

    @property
    def protocol(self) -> Protocol:
        """How the numbers were measured."""
        return self.identity.protocol

    def to_dict(self) -> dict[str, Any]:
        """The values that summary.json stores."""
        return {
            **self.statistics.to_dict(),
            "num_missing": self.num_missing,
            "num_skipped": len(self.skipped),
            "skipped": self.skipped,
            "batch_difference": self.batch_difference,
            "no_lower_bound": self.no_lower_bound,
            **self.identity.to_dict(),
            "runs": self.runs,
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Summary":
        """Create it from the values of a file; earlier versions did not write
        batch_difference, no_lower_bound and the decoder.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        problem = schema_problem(values, {"definition": OBJECT})
        if problem:
            raise ValueError(problem)
        values = {"batch_difference": 0.0, "no_lower_bound": "", **values}
        problem = schema_problem(values, {**IDENTITY_KINDS, **_KINDS})
        if problem:
            raise ValueError(problem)
        devices = [str(run.get("device")) for run in values["runs"] if isinstance(run, dict)]
        identity = Identity.from_dict({name: values[name] for name in IDENTITY_KINDS}, devices)
        return cls(
            statistics=Statistics.from_dict(values, identity.protocol.rho_name),
            identity=identity,
            **{name: values[name] for name in _KINDS},
        )


def summary_of(merged: Merged) -> Summary:
    """The summary of merged shards, which have at least one result."""
    stored = merged.stored
    return Summary(
        statistics=summarize(stored.samples, stored.manifest.identity.protocol),
        num_missing=len(merged.missing),
        skipped=sorted(stored.skipped.values()),
        batch_difference=stored.batch_difference,
        no_lower_bound=stored.no_lower_bound,
        identity=stored.manifest.identity,
        runs=stored.runs,
    )


def write_outputs(folder: Path, merged: Merged) -> Summary:
    """Write all files of a merged evaluation, in a block of `merge.merging`; returns the summary.

    Raises:
        UserError: there are no results yet, or a file cannot be written.
    """
    stored = merged.stored
    if len(stored.samples) == 0:
        raise UserError(f"{folder} contains no results yet")
    summary = summary_of(merged)
    with report_unwritable(folder, unwritable_remedy(folder)):
        write_samples(folder / "samples.parquet", stored)
        classes = by_class(stored.samples, stored.manifest.about["class_names"])
        lines = [list(row.values()) for row in classes]
        write_csv(folder / "classes.csv", list(classes[0]), lines)
        curves.write(folder, stored.samples, summary.protocol)
        _record(folder, merged, summary)
        write_json(folder / "summary.json", summary.to_dict())
    return summary


def format_summary(summary: Summary) -> str:
    """The summary in a few lines."""
    protocol, statistics = summary.protocol, summary.statistics
    quantiles = statistics.ratio_quantiles
    overshoot = f"overshoot {protocol.overshoot}, " if protocol.uses_deepfool else ""
    lines = [
        f"accuracy {statistics.accuracy:.2%}, top-5 {statistics.top5_accuracy:.2%}, "
        f"{statistics.rho_name} {short_number(statistics.rho)} over "
        f"{statistics.num_samples} images, "
        f"{statistics.num_unflipped} never flipped ({protocol.deepfool_limits}{overshoot}"
        f"{protocol.space}, {protocol.precision})",
        f"ratio: median {short_number(statistics.ratio_median)}, 5 % below "
        f"{short_number(quantiles['0.05'])}, 5 % above {short_number(quantiles['0.95'])}",
    ]
    lines += _format_diagnostics(summary)
    if summary.identity.input.decoder == "cpu and gpu":
        lines.append("a GPU decoded some images, the CPU others; their pixels differ a little")
    if summary.no_lower_bound:
        lines.append(f"no lower bound of distances: {summary.no_lower_bound}")
    fgs = statistics.fgs
    if fgs is not None and fgs.accuracy:
        accuracies = ", ".join(f"{e.accuracy:.2%} at {e.eps:.4g}" for e in fgs.accuracy)
        lines.append(f"after FGS: {accuracies}")
    if fgs is not None and fgs.searched:
        if statistics.accuracy > 0.5:
            none = "none: no eps of the search leaves at most half of the images correct"
        else:
            none = "none: at most half of the clean images are classified correctly"
        lines.append(f"eps_ref {none if fgs.eps_ref is None else format(fgs.eps_ref, '.6g')}")
    counts = {
        "have logits or perturbations that are not finite (NaN or infinity) and are not in the "
        "mean": statistics.num_nonfinite,
        "had no gradient to follow and are not in the mean": statistics.num_without_gradient,
        "have norm zero and are not in the mean": statistics.num_zero_images,
        "did not decode: see summary.json": len(summary.skipped),
        "are missing": summary.num_missing,
    }
    lines += [f"{count} images {text}" for text, count in counts.items() if count]
    lines += [f"warning: {text}" for text in distance_warnings(statistics)]
    return "\n".join(lines)


def _format_diagnostics(summary: Summary) -> list[str]:
    """How good the distances are, in at most three lines."""
    diagnostics, name = summary.statistics.diagnostics, summary.statistics.rho_name
    if diagnostics is None:
        return []
    lines = []
    if diagnostics.methods:
        means = {name: ratios["mean"] for name, ratios in diagnostics.methods.items()}
        methods = ", ".join(f"{name} {short_number(mean)}" for name, mean in means.items())
        over = diagnostics.deepfool_over_best
        ratio = "" if over is None else f"; DeepFool / best {over:.3f}"
        lines.append(f"{name} by method: {methods}{ratio}")
    bound = diagnostics.lower_bound
    if bound is not None:
        lines.append(
            f"{name} in [{bound['mean']:.4g}, {bound['mean_upper']:.4g}]: means of a lower bound "
            f"and of the best known distance over {bound['num_images']} images; the lower bound is "
            f"the distance for {bound['num_exact']}"
        )
    text = f"{diagnostics.mean_queries:.1f} queries an image"
    if diagnostics.mean_cosine is not None and diagnostics.share_below_cosine is not None:
        text += (
            f"; cosine with the boundary's normal {diagnostics.mean_cosine:.3f} in the mean, below "
            f"{LOW_COSINE} for {diagnostics.share_below_cosine:.1%} (1: a smallest perturbation)"
        )
    return [*lines, text]


def _record(folder: Path, merged: Merged, summary: Summary) -> None:
    """Record the numbers, the histogram of ratios and the contact sheet."""
    values = summary.to_dict().items()
    numbers: dict[str, float] = {k: v for k, v in values if isinstance(v, int | float)}
    options = config_file.read(folder / "config.yaml")
    with Monitor(folder, shown=True, step=-1, options=options) as monitor:
        # Training runs use other names; with equal names TensorBoard would show both in one plot.
        monitor.scalars(0, "evaluate", numbers)
        monitor.histogram(0, "evaluate/ratio", merged.stored.samples.ratio)
        accuracy_curves = curves.draw(merged.stored.samples, summary.protocol)
        monitor.figure(0, "evaluate/accuracy_under_budget", accuracy_curves)
        figure = contact_sheet.draw_stored(folder, merged.stored.manifest)
        if figure is not None:
            monitor.figure(0, "evaluate/perturbations", figure)


def write_samples(path: Path, stored: StoredResults) -> None:
    """Write samples.parquet: id and the columns of `Samples`; as metadata, the identity."""
    samples = stored.samples
    columns: dict[str, Any] = dict(samples.to_dict())
    for name in ("fgs_correct", "distances"):
        columns[name] = list(columns[name])
    table = pa.table({"id": [stored.ids[row] for row in samples.row.tolist()], **columns})
    metadata = {_METADATA_KEY: json.dumps(stored.manifest.identity.to_dict()).encode()}
    with atomic_write(path) as partial:
        described = table.replace_schema_metadata(metadata)
        pq.write_table(described, partial, compression="zstd", write_page_checksum=True)


def read_samples(path: Path) -> tuple[Samples, Identity]:
    """Samples and identity of a samples.parquet.

    Raises:
        UserError: there is no such file, or it is cut short or not a samples.parquet.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; make it with tools/report.py merge {path.parent}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        identity = _identity_of(table)
        for name in table.column_names:
            if table[name].null_count:
                raise ValueError(f"values of {name} are missing")
        names = [n for n in COLUMNS if n in table.column_names or n not in EARLIER_VALUES]
        columns = {name: table[name].to_pylist() for name in names}
        protocol = identity.protocol
        samples = Samples.from_dict(columns, protocol.num_eps, protocol.num_distances)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); make it again with tools/report.py "
            f"merge {path.parent}"
        ) from None
    return samples, identity


def _identity_of(table: pa.Table) -> Identity:
    values = json.loads(table.schema.metadata[_METADATA_KEY])
    try:
        return Identity.from_dict(values)
    except ValueError as error:
        raise ValueError(f"its identity {error}") from None
