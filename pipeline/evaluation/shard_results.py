"""Reads and writes results: JSON lines, appended as images finish, in a folder for each shard.

OUTPUT/results/i-of-n/ contains manifest.json (what was evaluated), rankR.jsonl (a line for each
image), examples/ROW.npz and runs.jsonl (a line for each job that ended). An image is
done if any file has its row. `ResultsAppender` writes the lines and the examples.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import RESUME_WORDS, Shard
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError
from pipeline.evaluation.agreement import allowed_difference, check_agreement
from pipeline.evaluation.manifest import Manifest, read_manifest, read_manifests
from pipeline.evaluation.result_lines import ResultRow, read_lines, read_rows
from pipeline.evaluation.results_appender import ResultsAppender
from pipeline.evaluation.samples import Example, Samples
from pipeline.runtime.agent import restarted
from pipeline.runtime.files import atomic_write, name_in_errors, write_json
from pipeline.runtime.npz import read_npz

if TYPE_CHECKING:
    from pipeline.runtime.distributed import DistributedContext  # imports torch

WHOLE = Shard(0, 1)
_MANIFEST = "manifest.json"
_MEAN = "mean.npy"
_RECORDS = "runs.jsonl"  # of the jobs that ended
_DECODER_REMEDY = (
    "give all shards --data.decoder cpu, or merge the results of both decoders with "
    "pipeline/evaluate.py --mix_decoders true"
)


@dataclass(frozen=True)
class StoredResults:
    """The results of all shards of a folder."""

    manifest: Manifest
    samples: Samples
    ids: dict[int, str]  # ids of the images with a result, by row
    skipped: dict[int, str]  # ids of the images that did not decode, by row
    batch_difference: float  # the largest one in the shards' manifests
    no_lower_bound: str  # as in `pipeline.evaluation.summary.Summary`
    runs: list[dict[str, Any]]  # records of jobs that ended
    shards: list[Shard]


class ResultsFolder:
    """OUTPUT/results, and the folder of one shard in it."""

    def __init__(self, folder: Path, shard: Shard = WHOLE) -> None:
        self.folder = folder
        self.shard_folder = folder / f"{shard.number}-of-{shard.num_shards}"

    @classmethod
    def for_shard(
        cls, folder: Path, resume: str, manifest: Manifest, shard: Shard
    ) -> "ResultsFolder":
        """The folder of a shard, which need not exist yet; writes nothing.

        Args:
            folder: OUTPUT/results of this run.
            resume: ``auto``, ``never``, or another results folder to resume.
            manifest: the manifest of this evaluation.
            shard: the part of the images that this job evaluates.

        Raises:
            UserError: the folder contains results of another evaluation, or ``resume`` is not
                possible.
        """
        if resume not in RESUME_WORDS:
            folder = Path(resume)
            if not _manifests(folder):
                raise UserError(
                    f"resume: {folder} is not auto, never or a folder of results"
                    f"{did_you_mean(resume, RESUME_WORDS)}"
                )
        store = cls(folder, shard)
        if resume == "never" and store.shard_folder.exists() and not restarted():
            raise UserError(
                f"resume is never, but {store.shard_folder} exists; give another --output"
            )
        check_same_evaluation(folder, manifest)
        return store

    @classmethod
    def start_or_resume(
        cls,
        folder: Path,
        resume: str,
        manifest: Manifest,
        shard: Shard,
        ranks: "DistributedContext",
    ) -> "ResultsFolder":
        """Start a shard, or resume one.

        Args:
            folder: as in `for_shard`.
            resume: as in `for_shard`.
            manifest: as in `for_shard`.
            shard: as in `for_shard`.
            ranks: rank 0 writes the manifest after all have read the folder.

        Raises:
            UserError: as `find` does.
        """
        store = cls.for_shard(folder, resume, manifest, shard)
        ranks.barrier()
        if ranks.is_main:
            (store.shard_folder / "examples").mkdir(parents=True, exist_ok=True)
            path = store.shard_folder / _MANIFEST
            if path.exists():  # a job on another machine may have written some results
                earlier = read_manifest(path)
                difference = allowed_difference([earlier, manifest])
                manifest = manifest.merged(earlier)
                about = manifest.about | {"batch_difference": difference}
                manifest = replace(manifest, about=about)
            write_json(path, manifest.to_dict())
        ranks.barrier()
        return store

    def keep_mean(self, mean: list[float] | str) -> None:
        """Store a copy of the mean image, which the contact sheet needs."""
        if isinstance(mean, str):
            with atomic_write(self.shard_folder / _MEAN) as partial:
                shutil.copyfile(mean, partial)

    def mean(self) -> str | None:
        """A copy of the mean image, stored by any of the shards."""
        return next((str(path) for path in self.folder.glob(f"*/{_MEAN}")), None)

    def rows_to_do(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that have no result yet, of any shard.

        Raises:
            UserError: as `read` does; not if there are no results.
        """
        if not _manifests(self.folder):
            return rows
        return rows[~np.isin(rows, self.read().samples.row)]

    def read(self) -> StoredResults:
        """All results so far, of every shard and rank.

        Raises:
            UserError: there are none, a file is damaged, manifests differ, or two results of an
                image disagree.
        """
        paths = _manifests(self.folder)
        manifests = self._read_manifests(paths)
        done, skipped = self._read_rows(manifests)
        protocol = manifests[0].identity.protocol
        rows = list(done.values())
        samples = Samples.from_rows(rows, protocol.num_eps, protocol.num_distances)
        logs = sorted(self.folder.glob(f"*/{_RECORDS}"))
        return StoredResults(
            manifest=reduce(Manifest.merged, manifests),
            samples=samples.take(np.argsort(samples.row)),
            ids={row: values["id"] for row, values in done.items()},
            skipped={row: image_id for row, image_id in skipped.items() if row not in done},
            batch_difference=max(manifest.batch_difference for manifest in manifests),
            no_lower_bound=max(manifest.no_lower_bound for manifest in manifests),
            runs=[run for path in logs for run in read_lines(path)],
            shards=[_shard_of(path) for path in paths],
        )

    def _read_manifests(self, paths: list[Path]) -> list[Manifest]:
        """The manifests of all shards.

        Raises:
            UserError: there are none, or they are of different evaluations.
        """
        if not paths:
            raise UserError(f"{self.folder} contains no results of pipeline/evaluate.py")
        manifests = read_manifests(paths)
        for path, manifest in zip(paths, manifests, strict=True):
            difference = manifests[0].differences(manifest)
            if difference:
                by_decoder = manifests[0].differs_by_decoder_alone(manifest)
                remedy = _DECODER_REMEDY if by_decoder else "move one of them away"
                raise UserError(
                    f"{paths[0].parent} and {path.parent} are of different evaluations: "
                    f"{difference}; {remedy}"
                )
        return manifests

    def _read_rows(self, manifests: list[Manifest]) -> tuple[dict[int, ResultRow], dict[int, str]]:
        """Results by row, and the ids of images that did not decode, by row.

        Raises:
            UserError: a line is damaged, or two results of an image disagree.
        """
        difference = allowed_difference(manifests)
        done: dict[int, ResultRow] = {}
        skipped: dict[int, str] = {}
        for path in sorted(self.folder.glob("*/rank*.jsonl")):
            for values in read_rows(path, manifests[0]):
                row = values["row"]
                if values.get("skipped"):
                    skipped[row] = values["id"]
                elif row in done:
                    check_agreement(done[row], values, path, difference)
                else:
                    done[row] = values
        return done, skipped

    def examples(self, shape: tuple[int, int, int]) -> list[Example]:
        """The stored perturbations, sorted by row.

        Args:
            shape: (C, H, W) of an image.

        Raises:
            UserError: a file is damaged, or its image has another shape.
        """
        paths = self.folder.glob("*/examples/*.npz")
        by_row = {example.row: example for example in (_read_example(p, shape) for p in paths)}
        return [by_row[row] for row in sorted(by_row)]

    def appender(self, rank: int) -> "ResultsAppender":
        """The file that a rank appends to; an incomplete last line of an earlier run is dropped."""
        return ResultsAppender(self.shard_folder, rank)

    def has_records(self) -> bool:
        """Whether a job of this shard has ended."""
        return (self.shard_folder / _RECORDS).exists()

    def log_run(self, run: dict[str, Any]) -> None:
        """Append a line about a job that ended."""
        path = self.shard_folder / _RECORDS
        with name_in_errors(path), path.open("a") as file:
            file.write(json.dumps(run) + "\n")


def check_same_evaluation(
    folder: Path,
    manifest: Manifest,
    free: tuple[str, ...] = (),
    remedy: str = "give another --output",
) -> None:
    """Refuse a folder with results of another evaluation.

    Args:
        folder: OUTPUT/results; it need not exist.
        manifest: of this evaluation.
        free: keys of the identity that are not compared.
        remedy: what the user can do.

    Raises:
        UserError: lists the differences.
    """
    paths = _manifests(folder)
    for path, other in zip(paths, read_manifests(paths), strict=True):
        difference = manifest.differences(other, free)
        if difference:
            by_decoder = manifest.differs_by_decoder_alone(other)
            raise UserError(
                f"{path.parent} contains results of another evaluation (this one -> that one: "
                f"{difference}); {f'{_DECODER_REMEDY}, or ' if by_decoder else ''}{remedy}"
            )


def _manifests(folder: Path) -> list[Path]:
    paths = list(folder.glob(f"*/{_MANIFEST}"))
    for path in paths:
        if not re.fullmatch(r"\d+-of-\d+", path.parent.name):
            raise UserError(f"{path.parent} is no folder of a shard, as 0-of-1 is; move it away")
    shards = {path: _shard_of(path) for path in paths}
    return sorted(paths, key=lambda path: (shards[path].num_shards, shards[path].number))


def _shard_of(manifest: Path) -> Shard:
    number, num_shards = manifest.parent.name.split("-of-")
    return Shard(int(number), int(num_shards))


def _read_example(path: Path, shape: tuple[int, int, int]) -> Example:
    remedy = "remove it: the contact sheet then lacks this image"
    arrays = read_npz(path, remedy)
    try:
        image, delta, (before, after) = arrays["image"], arrays["delta"], arrays["classes"].tolist()
        row = int(path.stem)
        if not image.shape == delta.shape == shape:
            raise ValueError(f"images of the shape {image.shape}, not {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an example ({error}); {remedy}") from None
    return Example(row, image, delta, before, after)
