"""The files of a joined evaluation: its summary, tables of images and classes, TensorBoard.

In: what `pipeline.evaluation.merge.join` returns. Out: OUTPUT/summary.json, samples.parquet,
classes.csv, tensorboard/.
"""

import csv
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, first_line
from pipeline.evaluation import contact_sheet
from pipeline.evaluation.manifest import identity_problem, num_eps
from pipeline.evaluation.merge import Merged
from pipeline.evaluation.samples import Samples, by_class, rho_name, summarize
from pipeline.evaluation.shard_results import StoredResults
from pipeline.runtime import lock
from pipeline.runtime.files import atomic_write, report_unwritable, write_json
from pipeline.runtime.monitor import Monitor

_METADATA_KEY = b"deep_defense_samples"


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
    numbers: dict[str, float] = {k: v for k, v in summary.items() if isinstance(v, int | float)}
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
