"""Mistakes: showing an index."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import index
from tests.helpers.images import index_tar
from tests.integration.mistakes.case import Case
from tests.integration.mistakes.index_files import INDEX, PNG


def show(*options: object) -> Callable[[Path], Sequence[object]]:
    """The command line that shows the index of a tar."""

    def argv(folder: Path) -> Sequence[object]:
        return (INDEX, "show", index_tar(folder / "x.tar", {"a/x.png": PNG}).path, *options)

    return argv


def arrays(folder: Path) -> Sequence[object]:
    """An index whose only row is an array."""
    argv = show("--sheet", folder / "s.png")(folder)
    path = Path(str(argv[2]))
    table = pq.read_table(path)
    kind = pa.array([index.FLOAT32_ARRAY]).dictionary_encode()
    pq.write_table(table.set_column(table.column_names.index("format"), "format", kind), path)
    return argv


CASES: list[Case] = [
    Case("show", show(), r"x\.parquet: 1 image of 1 class, ", 0),
    Case("show, no file", lambda _: (INDEX, "show", "no.parquet"), r"index: no file no\.parquet"),
    Case(
        "show, not a PNG", show("--sheet", "s.jpg"), r"--sheet s\.jpg: a contact sheet is a \.png"
    ),
    Case("show, no sheet", show("--seed", 3), r"show: --seed has no effect without --sheet FILE"),
    Case("show, no crops", show("--num", 0), r"--num must be from 1 to 1000, got 0"),
    Case(
        "show, an option of data",
        show("--sheet", "s.png", "--data.crop_size", 0),
        r"data\.crop_size must be from 1 to 4096, got 0",
    ),
    Case(
        "show, no config",
        show("--sheet", "s.png", "--config", "no.yaml"),
        r"--config: no file no\.yaml",
    ),
    Case(
        "show, a folder", show("--csv", "."), r"cannot write \.: Is a directory; give another --c"
    ),
    Case("show, arrays", arrays, r"x\.parquet contains arrays; a contact sheet is made of images"),
    Case(
        "show, moved",
        show("--sheet", "s.png", "--root", "nowhere"),
        r"no file nowhere/x\.tar, listed in .*; if the data has moved, set --data\.root FOLDER",
    ),
]
