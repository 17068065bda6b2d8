"""Merging the shards of an evaluation.

In: OUTPUT/results. Out: `Merged`. It is the same for any number of shards and ranks, also if some
shards were interrupted and resumed.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Shard
from pipeline.data.index import evenly_spaced
from pipeline.errors import first_few
from pipeline.evaluation.shard_results import Manifest, ResultsFolder, StoredResults
from pipeline.runtime.files import report_unwritable
from pipeline.runtime.lock import wait_for_lock


@dataclass(frozen=True)
class Merged:
    """The results of all shards of an evaluation."""

    stored: StoredResults
    missing: np.ndarray  # rows of the index without a result in any shard

    @property
    def complete(self) -> bool:
        """Whether every image was evaluated, or did not decode."""
        return len(self.missing) == 0

    def num_missing_by_shard(self, num_shards: int) -> Counter[int]:
        """Missing images per incomplete shard, for a split into ``num_shards``."""
        rows = _rows(self.stored.manifest).tolist()
        shard_of_row = {row: position % num_shards for position, row in enumerate(rows)}
        return Counter(shard_of_row[row] for row in self.missing.tolist())

    def missing_message(self) -> str:
        """One line that lists the shards and rows that are not done."""
        line = f"{len(self.missing)} of {len(_rows(self.stored.manifest))} images are missing"
        splits = {shard.num_shards for shard in self.stored.shards}
        if len(splits) == 1:
            (num_shards,) = splits
            counts = sorted(self.num_missing_by_shard(num_shards).items())
            parts = [f"{n} of shard {Shard(number, num_shards)}" for number, n in counts]
            line += f": {', '.join(parts)}"
        return f"{line} (rows {first_few([str(row) for row in self.missing.tolist()])})"


def merge_shards(folder: Path) -> Merged:
    """Merge the shards in OUTPUT/results.

    Raises:
        UserError: there are no shards, they are of different evaluations, or they disagree.
    """
    stored = ResultsFolder(folder / "results").read()
    rows = _rows(stored.manifest)
    done = np.concatenate([stored.samples.row, np.array(list(stored.skipped), np.int64)])
    return Merged(stored, rows[~np.isin(rows, done)])


def unwritable_remedy(folder: Path) -> str:
    """What to do about outputs that cannot be written, for messages."""
    return f"once it can be written, run tools/report.py merge {folder}"


@contextmanager
def merging(folder: Path) -> Iterator[Merged]:
    """Merge the shards in OUTPUT/results, for a block that writes files of them.

    No other process merges meanwhile: its block would write over this one's files with the results
    that it read before.

    Raises:
        UserError: as `merge_shards`, or the folder cannot be written.
    """
    with ExitStack() as stack:
        if (folder / "results").is_dir():
            with report_unwritable(folder, unwritable_remedy(folder)):
                stack.enter_context(wait_for_lock(folder / "results" / ".merge"))
        yield merge_shards(folder)


def _rows(manifest: Manifest) -> np.ndarray:
    return evenly_spaced(manifest.identity.num_indexed, manifest.identity.num_images)
