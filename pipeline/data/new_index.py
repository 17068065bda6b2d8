"""An index before it is written: verifying, summarising and writing a scan."""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import index
from pipeline.data.classes import Classes
from pipeline.data.scan_rows import ReportProgress, Scan, printable
from pipeline.runtime import machine

_MAX_LINES = 8  # lines for each reason for which members are left out


@dataclass(frozen=True)
class NewIndex:
    """A scan, and the path of the index to write."""

    path: Path
    rows: Scan
    classes: Classes
    root: Path  # the folder that the `file` column is relative to
    archives: Mapping[str, Path] = field(default_factory=dict)  # by their names in that column

    @classmethod
    def of_archive(cls, path: Path, rows: Scan, classes: Classes, archive: Path) -> "NewIndex":
        """The index of one archive. A link's own folder and name are recorded, not its target's."""
        return cls(path, rows, classes, archive.parent.resolve(), {archive.name: archive})

    @property
    def source(self) -> Path:
        """The archive; the folder, if there is none or several."""
        return next(iter(self.archives.values())) if len(self.archives) == 1 else self.root

    def verify(self, progress: ReportProgress) -> None:
        """Decode every image as training does, and leave out those that fail.

        Args:
            progress: called with the number of images decoded so far.
        """
        from pipeline.data.verify import undecodable_rows  # imports torch and DALI, which is slow

        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "draft.parquet"
            index.write(draft, self.rows.table(), self.root, self.classes, self.archives)
            images = index.read(str(draft), option="--verify")
        self.rows.drop(undecodable_rows(images, machine.cores() + 1, progress), "does not decode")

    def rejected_lines(self) -> list[str]:
        """Lines that name the members left out, the first eight for each reason."""
        by_reason: dict[str, list[tuple[str, str]]] = {}
        for member, why in self.rows.rejected:
            by_reason.setdefault(re.sub(r"\d+", "", why), []).append((member, why))
        lines = []
        for members in by_reason.values():
            lines += [f"left out {printable(name)}: {why}" for name, why in members[:_MAX_LINES]]
            if len(members) > _MAX_LINES:
                lines.append(f"left out {len(members) - _MAX_LINES:,} more: {members[-1][1]}")
        return lines

    def summary(self) -> str:
        """The index in one line."""
        columns = self.rows.columns
        kinds = Counter(zip(columns["format"], columns["mode"], strict=True))
        counts = [f"{count:,} {kind} {mode}" for (kind, mode), count in kinds.most_common()]
        return (
            f"{self.path}: {counted(len(self.rows), 'image', 'images')} of "
            f"{counted(len(self.classes), 'class', 'classes')} ({', '.join(counts)})"
        )

    def write(self) -> None:
        """Write the file."""
        index.write(self.path, self.rows.table(), self.root, self.classes, self.archives)


def counted(number: int, one: str, several: str) -> str:
    """A number and its noun."""
    return f"{number:,} {one if number == 1 else several}"
