"""Mistakes: Parquet files of images."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parquet_files import ParquetShards, read_facts
from pipeline.data.parquet_repack import plan_copies, write_copies
from tests.helpers.images import encode, index_tar, picture
from tests.helpers.parquet import write_parquet
from tests.integration.mistakes.case import Case
from tests.integration.mistakes.index_files import INDEX, PNG

NAMES = ["tench, Tinca", "goldfish"]
COMMAND = (INDEX, "parquet", "[0-9].parquet", "--out", "i.parquet")
Argv = Callable[[Path], Sequence[object]]


def rows(
    *labels: object,
    image: Any = PNG,
    names: Sequence[str] | None = NAMES,
    kind: Any = None,
    compression: str = "none",
) -> dict[str, Any]:
    """A file of one image for each label."""
    values = {"images": [image] * len(labels), "labels": labels, "names": names}
    more = {} if kind is None else {"kind": kind}
    return {**values, **more, "compression": compression}


def files(*contents: dict[str, Any], more: Sequence[object] = (), cut: int = 0) -> Argv:
    """The command line that indexes 0.parquet, 1.parquet, ... without the last ``cut`` bytes."""

    def argv(folder: Path) -> Sequence[object]:
        for number, content in enumerate(contents):
            path = write_parquet(folder / f"{number}.parquet", **content)
            os.truncate(path, path.stat().st_size - cut)
        (folder / "classes.txt").write_text("n1 tench\nn2 goldfish\n")
        return (*COMMAND, *more)

    return argv


def table(**columns: pa.Array) -> Argv:
    """The command line for a file of these columns."""

    def argv(folder: Path) -> Sequence[object]:
        pq.write_table(pa.table(columns), folder / "0.parquet", compression="none")
        return COMMAND

    return argv


def raw(content: bytes) -> Argv:
    """The command line for a file of these bytes."""

    def argv(folder: Path) -> Sequence[object]:
        (folder / "0.parquet").write_bytes(content)
        return COMMAND

    return argv


def an_index(folder: Path) -> Sequence[object]:
    shutil.copy(index_tar(folder / "x.tar", {"a/x.png": PNG}).path, folder / "0.parquet")
    return COMMAND


def damaged_page(folder: Path) -> Sequence[object]:
    """A file with checksums, one byte of which is another one."""
    photo = encode(picture(40, 40), "PNG")
    options = {**rows(0, image=photo), "write_page_checksum": True}
    path = write_parquet(folder / "0.parquet", **options)
    data = bytearray(path.read_bytes())
    data[data.index(photo) + 60] ^= 1
    path.write_bytes(data)
    return COMMAND


def foreign_file(folder: Path) -> Sequence[object]:
    (folder / "d").mkdir()
    write_parquet(folder / "d" / "0.parquet", **rows(0))
    return files(rows(0, compression="snappy"), more=["--repack", "d"])(folder)


def copies_of_another_data_set(folder: Path) -> Sequence[object]:
    path = folder / "train" / "0.parquet"
    path.parent.mkdir()
    write_parquet(path, **rows(0, 1, compression="snappy"))
    shards = ParquetShards([path])
    write_copies(plan_copies(shards, read_facts(shards), folder / "d"))
    return files(rows(0, compression="snappy"), more=["--repack", "d"])(folder)


def copies_of_nothing(folder: Path) -> Sequence[object]:
    """The folder of the copies cannot be made."""
    (folder / "d").write_text("a file")
    return files(rows(0, compression="snappy"), more=["--repack", "d"])(folder)


LISTED = ("--classes", "classes.txt")
IMAGES, LABELS = pa.array([PNG]), pa.array([0])

CASES: list[Case] = [
    Case("parquet", files(rows(0, 1), rows(1)), r"i\.parquet: 3 images of 2 classes", 0),
    Case("parquet, no match", lambda _: COMMAND, r"parquet: no file matches \[0-9\]\.parquet"),
    Case("parquet, an image in bytes", table(image=IMAGES, label=LABELS), r"1 image of 1 cl", 0),
    Case(
        "parquet, compressed",
        files(rows(0, compression="snappy"), rows(0)),
        r"/0\.parquet: its images are compressed with SNAPPY, .*--repack DIR, .* 1 of 2 files",
    ),
    Case(
        "parquet, copies",
        files(rows(0, compression="snappy"), rows(0), more=["--repack", "d"]),
        r"2 images of 2 classes",
        0,
    ),
    Case(
        "parquet, no copy needed",
        files(rows(0), more=["--repack", "d"]),
        r"--repack has no effect: the images of all files can be read in place",
        0,
    ),
    Case(
        "parquet, another file among the copies",
        foreign_file,
        r"--repack: .*d/0\.parquet exists and is not a copy of an earlier --repack; give another",
    ),
    Case(
        "parquet, copies of another data set",
        copies_of_another_data_set,
        r"--repack: .*d/0\.parquet is the copy of .*train/0\.parquet, .*; give another folder",
    ),
    Case("parquet, no folder", copies_of_nothing, r"cannot write .*d/0\.parquet: Not a directory"),
    Case(
        "parquet, cut short",
        files(rows(0), cut=1),
        r"/0\.parquet cannot be read as Parquet \(.*\); is the download complete\?",
    ),
    Case("parquet, another format", raw(b"PK\3\4" * 9), r"/0\.parquet is not a Parquet file; is"),
    Case("parquet, empty", raw(b""), r"/0\.parquet is not a Parquet file; is the download compl"),
    Case("parquet, encrypted", raw(b"PARE" * 9), r"/0\.parquet is encrypted"),
    Case(
        "parquet, a pointer of Git LFS",
        raw(b"version https://git-lfs.github.com/spec/v1\n"),
        r"/0\.parquet is a pointer of Git LFS; download it: git lfs pull",
    ),
    Case("parquet, an index", an_index, r"/0\.parquet is an index of tools/index\.py; give the f"),
    Case("parquet, a damaged page", damaged_page, r"/0\.parquet cannot be read as Parquet \(.*CRC"),
    Case(
        "parquet, no images",
        table(img=IMAGES, label=LABELS),
        r"/0\.parquet has no column 'image'; its columns are: img, label; name .* --image-key",
    ),
    Case(
        "parquet, no labels",
        table(image=IMAGES, fine_label=LABELS),
        r"has no column 'label'; its columns are: image, fine_label; name .* --label-key",
    ),
    Case(
        "parquet, images of another type",
        table(image=pa.array(["a.jpg"]), label=LABELS),
        r"its column image holds string, not images \(bytes, or a struct with the field bytes\)",
    ),
    Case(
        "parquet, images without the field",
        table(image=pa.array([{"path": "a.jpg"}]), label=LABELS),
        r"its column image holds struct<path: string>, not images .*write the file again with the",
    ),
    Case(
        "parquet, only paths",
        files(rows(0, image=(None, "a.jpg"))),
        r"/0\.parquet: row 0 has only the path of an image, a\.jpg, and not its bytes; write",
    ),
    Case(
        "parquet, no image",
        files({**rows(0, 1), "images": [None, PNG]}),
        r"left out 0\.parquet: 0/0: no image(.*\n)*.*1 class has no images: 'tench, Tinca'",
        0,
    ),
    Case("parquet, no image at all", files(rows(0, image=None)), r"contains no images that can b"),
    Case("parquet, no rows", files({**rows(), "labels": pa.array([], pa.int64())}), r"no images"),
    Case(
        "parquet, labels of another type",
        files(rows(0.5)),
        r"/0\.parquet: its column label holds double, not class numbers .* --label-key",
    ),
    Case("parquet, names as labels", files(rows("n1")), r"its column label holds string, not cla"),
    Case(
        "parquet, no label",
        files(rows(0), rows(1, None)),
        r"/1\.parquet: row 1 has no label; write the file again with all labels",
    ),
    Case(
        "parquet, negative",
        files(rows(0), rows(1, 1, -1)),
        r"/1\.parquet: row 2 has the label -1; is it a part without labels, as test images are\?",
    ),
    Case(
        "parquet, a label outside the names",
        files(rows(0, 2)),
        r"/0\.parquet: row 1 has the label 2; there are 2 classes, 0 to 1; correct the list",
    ),
    Case(
        "parquet, a label outside the list",
        files(rows(0, 2, names=None), more=LISTED),
        r"/0\.parquet: row 1 has the label 2; there are 2 classes",
    ),
    Case(
        "parquet, too large",
        files(rows(10**9, names=None)),
        r"/0\.parquet: the class number 1000000000 is not below 1,000,000; list the classes with",
    ),
    Case(
        "parquet, classes of the list",
        files(rows(1), more=LISTED),
        r"1 image of 2 classes(.*\n)*.*1 class has no images: n1",
        0,
    ),
    Case(
        "parquet, a list of other classes",
        files(rows(0, names=["a", "b", "c"]), more=LISTED),
        r"/0\.parquet names 3 classes, and --classes lists 2; give the list of these images'",
    ),
    Case(
        "parquet, a list in another order",
        files(rows(0, names=["goldfish, x", "tench"]), more=LISTED),
        r"--classes: 'tench' is label 0 of the list and label 1 of .*/0\.parquet; labels are kept",
    ),
    Case("parquet, equal names", files(rows(0, names=["a", "a"])), r"0\.parquet names two classes"),
    Case(
        "parquet, other names",
        files(rows(0), rows(0, names=["tench, Tinca", "shark"])),
        r"/0\.parquet and .*/1\.parquet have different classes: in .*label 1 is 'shark', not 'gold",
    ),
    Case(
        "parquet, more names",
        files(rows(0), rows(0, names=[*NAMES, "shark"])),
        r"have different classes: in .*/1\.parquet there are 3 classes, not 2",
    ),
    Case(
        "parquet, no names in one",
        files(rows(0), rows(0, names=None)),
        r"have different classes: in .*/1\.parquet no classes are named",
    ),
    Case(
        "parquet, other columns",
        files(rows(0), rows(0, kind=pa.binary())),
        r"/1\.parquet have different columns: in .* image holds binary and label int64; index the",
    ),
]
