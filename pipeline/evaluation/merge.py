"""The shards of an evaluation joined into its summary, tables of images and classes, TensorBoard.

In: OUTPUT/results. Out: OUTPUT/summary.json, samples.parquet, classes.csv, tensorboard/. The same
for any number of shards and ranks, whatever was killed on the way.
"""

import csv
import json
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Shard
from pipeline.data.index import evenly_spaced
from pipeline.errors import UserError, first_line
from pipeline.evaluation import contact_sheet
from pipeline.evaluation.manifest import identity_problem, num_eps
from pipeline.evaluation.samples import Samples, by_class, rho_name, summarize
from pipeline.evaluation.shard_results import Manifest, ResultsFolder, StoredResults
from pipeline.runtime import lock
from pipeline.runtime.files import atomic_write, report_unwritable, write_json
from pipeline.runtime.monitor import Monitor

_METADATA_KEY = b"deep_defense_samples"


@dataclass(frozen=True)
class Merged:
    """All that the shards of an evaluation found."""

    stored: StoredResults
    missing: np.ndarray  # rows that no shard has

    @property
    def complete(self) -> bool:
        """Whether every image was evaluated, or did not decode."""
        return len(self.missing) == 0

    def num_missing_by_shard(self, of: int) -> Counter[int]:
        """How many images each shard lacks that does, were there so many shards."""
        place = {row: i % of for i, row in enumerate(_rows(self.stored.manifest).tolist())}
        return Counter(place[row] for row in self.missing.tolist())

    def missing_message(self) -> str:
        """One line that names the shards and rows that are not done."""
        numbers = {shard.of for shard in self.stored.shards}
        rows = ", ".join(map(str, self.missing[:8])) + (", ..." if len(self.missing) > 8 else "")
        line = f"{len(self.missing)} of {len(_rows(self.stored.manifest))} images are missing"
        if len(numbers) == 1:
            (of,) = numbers
            lacking = sorted(self.num_missing_by_shard(of).items())
            line += ": " + ", ".join(f"{n} of shard {Shard(number, of)}" for number, n in lacking)
        return f"{line} (rows {rows})"


def merge_shards(folder: Path) -> Merged:
    """Join the shards in OUTPUT/results.

    Raises:
        UserError: there are none, they are of different evaluations, or they disagree.
    """
    stored = ResultsFolder(folder / "results").read()
    rows = _rows(stored.manifest)
    known = np.concatenate([stored.samples.row, np.array(list(stored.skipped), np.int64)])
    return Merged(stored, rows[~np.isin(rows, known)])


def _rows(manifest: Manifest) -> np.ndarray:
    return evenly_spaced(manifest.identity["num_indexed"], manifest.identity["num_images"])


def write_outputs(folder: Path, merged: Merged) -> dict[str, Any]:
    """Write everything that is made of the results; the summary."""
    stored = merged.stored
    identity, about = stored.manifest.identity, stored.manifest.about
    if len(stored.samples) == 0:
        raise UserError(f"{folder} holds no results yet")
    summary = {
        **summarize(stored.samples, identity["definition"]),
        "num_missing": len(merged.missing),
        "num_skipped": len(stored.skipped),
        "skipped": sorted(stored.skipped.values()),
        "batch_difference": stored.batch_difference,
        **identity,
        "runs": stored.runs,
    }
    remedy = f"once it can be written, run tools/report.py merge {folder}"
    with (
        report_unwritable(folder, remedy),
        lock.wait_for_lock(folder / "results" / ".merge"),  # two shards may end at once
    ):
        write_samples(folder / "samples.parquet", stored)
        _write_csv(folder / "classes.csv", by_class(stored.samples, about["class_names"]))
        _show(folder, merged, summary)
        write_json(folder / "summary.json", summary)
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """The summary in a few lines."""
    attack, rho = summary["definition"], rho_name(summary["definition"])
    quantiles = summary["ratio_quantiles"]
    lines = [
        f"accuracy {summary['accuracy']:.2%}, top-5 {summary['top5_accuracy']:.2%}, "
        f"{rho} {summary[rho]:.4g} over {summary['num_samples']} images, "
        f"{summary['num_unflipped']} never flipped (q {attack['num_candidates']}, at most "
        f"{attack['max_iterations']} iterations, overshoot {attack['overshoot']}, "
        f"{attack['space']}, {attack['precision']})",
        f"ratio: median {summary['ratio_median']:.4g}, 5 % below {quantiles['0.05']:.4g}, "
        f"5 % above {quantiles['0.95']:.4g}",
    ]
    fgs = summary.get("fgs", {})
    if fgs.get("accuracy"):
        at = ", ".join(f"{e['accuracy']:.2%} at {e['eps']:.4g}" for e in fgs["accuracy"])
        lines.append(f"after FGS: {at}")
    if "eps_ref" in fgs:
        found = fgs["eps_ref"]
        none = "none: fewer than half are right without a perturbation"
        lines.append(f"eps_ref {found:.6g}" if found else f"eps_ref {none}")
    apart = {
        "num_nonfinite": "have logits or perturbations that are not finite (NaN or infinity) and "
        "are not in the mean",
        "num_without_gradient": "had no gradient to follow and are not in the mean",
        "num_zero_images": "have norm zero and are not in the mean",
        "num_skipped": "did not decode: see summary.json",
        "num_missing": "are missing",
    }
    lines += [f"{summary[name]} images {what}" for name, what in apart.items() if summary[name]]
    return "\n".join(lines)


def _show(folder: Path, merged: Merged, summary: dict[str, Any]) -> None:
    """TensorBoard: the numbers, the histogram of ratios, the contact sheet."""
    numbers = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    with Monitor(folder, shown=True, step=-1) as monitor:
        # Other names than those of a training run, whose curves would share cards with this step 0.
        monitor.scalars(0, "evaluate", numbers)
        monitor.histogram(0, "evaluate/ratio", merged.stored.samples.ratio)
        sheet = contact_sheet.draw_kept(folder, merged.stored.manifest)
        if sheet is not None:
            monitor.figure(0, "evaluate/perturbations", sheet)


def write_samples(path: Path, stored: StoredResults) -> None:
    """Write samples.parquet: id and the columns of `Samples`; as metadata, the identity."""
    samples = stored.samples
    columns = {f.name: getattr(samples, f.name) for f in fields(Samples)}
    columns["fgs_correct"] = list(samples.fgs_correct)
    table = pa.table({"id": [stored.ids[row] for row in samples.row.tolist()], **columns})
    metadata = {_METADATA_KEY: json.dumps(stored.manifest.identity).encode()}
    with atomic_write(path) as partial:
        described = table.replace_schema_metadata(metadata)
        pq.write_table(described, partial, compression="zstd", write_page_checksum=True)


def read_samples(path: Path) -> tuple[Samples, dict[str, Any]]:
    """Samples and identity of a samples.parquet.

    Raises:
        UserError: there is no such file, or it is cut short or no such file.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; make it with tools/report.py merge {path.parent}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        identity = json.loads(table.schema.metadata[_METADATA_KEY])
        problem = identity_problem(identity)
        if problem:
            raise ValueError(f"its identity {problem}")
        for name in table.column_names:
            if table[name].null_count:
                raise ValueError(f"it lacks values of {name}")
        columns = {f.name: table[f.name].to_pylist() for f in fields(Samples)}
        samples = Samples.of_columns(columns, num_eps(identity))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); make it again with tools/report.py "
            f"merge {path.parent}"
        ) from None
    return samples, identity


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
