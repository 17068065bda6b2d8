"""Parquet files of images: where the bytes are, ids and classes, and uncompressed copies."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import index, parquet_repack
from pipeline.data.classes import Classes
from pipeline.data.mapped_files import Files
from pipeline.data.parquet_files import ParquetShards, read_facts
from pipeline.data.parquet_images import scan_images
from pipeline.data.parquet_repack import Copy, plan_copies, write_copies
from pipeline.data.parquet_rows import FileRows, read_rows
from pipeline.data.scan_rows import Scan
from pipeline.errors import UserError
from tests.helpers.images import encode, picture
from tests.helpers.parquet import UNCOMPRESSED, write_parquet

NONE: dict[str, Any] = {"compression": "none"}


def photo(seed: int) -> bytes:
    return encode(picture(30 + seed, 20, seed), "JPEG")


# With repetitions, which a dictionary stores once; the first one is small.
IMAGES = [photo(k) for k in (0, 1, 2, 1, 3, 3, 0, 4, 5, 6, 7, 8, 9, 1, 10, 11)]
LABELS = [k % 3 for k in range(len(IMAGES))]


def scan(shards: ParquetShards) -> tuple[Scan, list[FileRows], Classes]:
    facts = read_facts(shards)
    rows, classes = read_rows(shards, facts)
    return scan_images(shards, facts, rows), rows, classes


def images_of(shards: ParquetShards, folder: Path) -> list[bytes]:
    """The bytes to which the index of the files points."""
    rows, _, classes = scan(shards)
    index.write(folder / "i.parquet", rows.table(), shards.root, classes, shards.archives)
    photos = index.read(str(folder / "i.parquet"))
    return [view.tobytes() for view in Files(photos).views(np.arange(len(photos)))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 3000},  # the dictionary is given up in the middle
        {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1},
        {"use_dictionary": False, "data_page_version": "2.0", "row_group_size": 5},
        {"data_page_size": 1, "write_batch_size": 2, "row_group_size": 7},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
        {"use_dictionary": False, "write_page_checksum": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary()], ids=str)
def test_every_image_is_found(
    kind: pa.DataType | None, options: dict[str, Any], tmp_path: Path
) -> None:
    more = {} if kind is None else {"kind": kind}
    if "column_encoding" in options:
        leaf = "image.bytes" if kind is None else "image"
        options = {**options, "column_encoding": {leaf: options["column_encoding"]}}
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, **more, **NONE, **options)
    assert images_of(ParquetShards([path]), tmp_path) == IMAGES


def test_files_as_the_datasets_library_writes_them(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, **UNCOMPRESSED)
    assert images_of(ParquetShards([path]), tmp_path) == IMAGES


def test_images_that_are_contained_in_others(tmp_path: Path) -> None:
    """An image may be a part of another one, such as its thumbnail."""
    small, large = photo(0), photo(1)
    images = [large + small + b"\xff\xd9", small, large, small + large, small]
    for number, options in enumerate([{}, {"use_dictionary": False}]):
        path = write_parquet(tmp_path / f"{number}.parquet", images, [0] * 5, **NONE, **options)
        assert images_of(ParquetShards([path]), tmp_path) == images


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    images = [photo(0), b"", None, b"no image", photo(1)[:-30], photo(2)]
    path = write_parquet(tmp_path / "x.parquet", images, [0] * 6, **NONE)
    rows, _, _ = scan(ParquetShards([path]))
    assert rows.columns["id"] == ["x/0", "x/5"]
    reasons = [reason for _, reason in rows.rejected]
    assert reasons[:3] == ["empty", "no image", "not an image"]
    assert [name for name, _ in rows.rejected] == [f"x.parquet: x/{k}" for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        ([["a.jpg", "b.jpg"], ["c.jpg"]], ["a.jpg", "b.jpg", "c.jpg"]),
        ([["a.jpg", "b.jpg"], ["a.jpg"]], ["d/x-2/0", "d/x-2/1", "d/x-10/0"]),
        ([["a.jpg", None], ["c.jpg"]], ["d/x-2/0", "d/x-2/1", "d/x-10/0"]),
        ([["a.jpg", "b.jpg"], [""]], ["d/x-2/0", "d/x-2/1", "d/x-10/0"]),
    ],
)
def test_ids(paths: list[list[str | None]], ids: list[str], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    files = [tmp_path / "d" / f"x-{k}.parquet" for k in (2, 10)]
    for path, names in zip(files, paths, strict=True):
        write_parquet(path, [(photo(0), name) for name in names], [0] * len(names), **NONE)
    above = write_parquet(tmp_path / "y.parquet", [], pa.array([], pa.int64()))
    rows, _, _ = scan(ParquetShards([*files, above]))
    assert rows.columns["id"] == ids


def classes_of(path: Path, names: Sequence[str] | None, listed: Classes | None = None) -> Classes:
    write_parquet(path, [photo(0), photo(1)], [2, 1], names, **NONE)
    return scan(ParquetShards([path], classes=listed))[2]


def test_classes(tmp_path: Path) -> None:
    names = ["tench, Tinca tinca", "a goldfish", "shark"]
    path = tmp_path / "x.parquet"
    assert classes_of(path, names) == Classes(names, names)
    assert classes_of(path, None).ids == ["0", "1", "2"]
    listed = Classes(["tench", "goldfish", "shark"], ["n1", "n2", "n3"])
    assert classes_of(path, names, listed) == listed
    assert classes_of(path, None, listed) == listed
    other_order = Classes(["shark", "tench", "goldfish"], ["n3", "n1", "n2"])
    with pytest.raises(UserError, match=r"'shark' is label 0 of the list and label 2 of .*x\.par"):
        classes_of(path, names, other_order)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint64()], ids=str)
def test_labels_of_any_integer_type(kind: pa.DataType, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, pa.array(LABELS, kind), **NONE)
    assert scan(ParquetShards([path]))[0].columns["label"] == LABELS


def copies(folder: Path, number: int = 3, **options: Any) -> tuple[ParquetShards, list[Copy]]:
    """Compressed files, and the copies that they need in the folder "copies"."""
    (folder / "in").mkdir(exist_ok=True)
    paths = [folder / "in" / f"{k}.parquet" for k in range(number)]
    for k, path in enumerate(paths):
        write_parquet(path, IMAGES[k:], LABELS[k:], ["a", "b", "c"], **options)
    shards = ParquetShards(paths)
    return shards, plan_copies(shards, read_facts(shards), folder / "copies")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "row_group_size": 3},
        {
            "compression": "none",
            "use_dictionary": False,
            "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"},
        },
    ],
    ids=["snappy", "gzip", "delta"],
)
def test_copies_hold_the_same_rows(options: dict[str, Any], tmp_path: Path) -> None:
    shards, planned = copies(tmp_path, **options)
    write_copies(planned)
    targets = ParquetShards([copy.target for copy in planned])
    for path, target in zip(shards.paths, targets.paths, strict=True):
        original, copied = pq.read_table(path), pq.read_table(target)
        assert copied.equals(original)
        added = (copied.schema.metadata or {}).keys() - (original.schema.metadata or {}).keys()
        assert len(added) == 1
    assert [facts.obstacle for facts in read_facts(targets)] == [""] * 3
    assert images_of(targets, tmp_path) == [*IMAGES, *IMAGES[1:], *IMAGES[2:]]


def test_the_space_that_copies_need(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (5, 100_000), dtype=np.uint8)
    path = write_parquet(tmp_path / "x.parquet", [row.tobytes() for row in noise], [0] * 5)
    shards = ParquetShards([path])
    (copy,) = plan_copies(shards, read_facts(shards), tmp_path / "copies")
    write_copies([copy])
    assert copy.num_bytes == pytest.approx(copy.target.stat().st_size, rel=0.02)
    parquet_repack.check_space([copy], tmp_path)
    huge = dataclasses.replace(copy.facts, num_bytes=10**18)
    with pytest.raises(UserError, match=r"the copies need about 1,000,000,000\.0 GB, and .* free"):
        parquet_repack.check_space([dataclasses.replace(copy, facts=huge)], tmp_path / "new/x")


def test_row_groups_of_copies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_repack, "_ROW_GROUP", 2 * max(map(len, IMAGES)))
    _, (copy,) = copies(tmp_path, number=1)
    write_copies([copy])
    metadata = pq.read_metadata(copy.target)
    sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    assert max(sizes) <= 4
    assert sum(sizes) == len(IMAGES)


def test_files_that_need_no_copy(tmp_path: Path) -> None:
    assert copies(tmp_path, **UNCOMPRESSED)[1] == []


def test_a_stopped_copy_resumes(tmp_path: Path) -> None:
    _, planned = copies(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_copies(planned, progress=stop_after(3))
    assert [copy.is_complete() for copy in planned] == [True, True, False]
    assert len(list((tmp_path / "copies").iterdir())) == 2
    times = [copy.target.stat().st_mtime_ns for copy in planned[:2]]
    write_copies([copy for copy in planned if not copy.is_complete()])
    assert all(copy.is_complete() for copy in planned)
    assert [copy.target.stat().st_mtime_ns for copy in planned[:2]] == times


def stop_after(number: int) -> Any:
    """A report of progress that raises an error at its ``number``-th call."""
    calls: list[int] = []

    def progress(done: int) -> None:
        calls.append(done)
        if len(calls) == number:
            raise KeyboardInterrupt

    return progress


def test_a_changed_original_is_copied_again(tmp_path: Path) -> None:
    _, planned = copies(tmp_path)
    write_copies(planned)
    write_parquet(planned[1].source, IMAGES[:3], LABELS[:3])
    assert [copy.is_complete() for copy in planned] == [True, False, True]
    write_copies(planned[1:2])
    assert pq.read_metadata(planned[1].target).num_rows == 3


def test_copies_of_another_data_set_are_kept(tmp_path: Path) -> None:
    """The hub's converted files have the names 0000.parquet, ... in the folder of each split."""
    planned = {}
    for split, images in {"train": IMAGES, "validation": IMAGES[:3]}.items():
        path = tmp_path / "default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        write_parquet(path, images, LABELS[: len(images)])
        shards = ParquetShards([path])
        (planned[split],) = plan_copies(shards, read_facts(shards), tmp_path / "copies")
    write_copies([planned["train"]])
    message = r"copies/0000\.parquet is the copy of .*/train/0000\.parquet, not of .*/validation/0"
    with pytest.raises(UserError, match=message):
        planned["validation"].is_complete()
    assert planned["train"].is_complete()


def test_copies_of_a_moved_data_set_are_used(tmp_path: Path) -> None:
    _, (copy,) = copies(tmp_path, number=1)
    write_copies([copy])
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = dataclasses.replace(copy, source=tmp_path / "moved" / "0.parquet")
    assert moved.is_complete()
    write_parquet(moved.source, IMAGES[:3], LABELS[:3])
    with pytest.raises(UserError, match=r"is the copy of .*/in/0\.parquet, not of .*/moved/0\.par"):
        moved.is_complete()


def test_copies_without_the_path_of_the_original(tmp_path: Path) -> None:
    """As earlier versions wrote them: used while the original is the same, and never replaced."""
    _, (copy,) = copies(tmp_path, number=1)
    write_copies([copy])
    table = pq.read_table(copy.target)
    metadata = dict(table.schema.metadata)
    stored = json.loads(metadata[parquet_repack._KEY])
    del stored["path"]
    metadata[parquet_repack._KEY] = json.dumps(stored).encode()
    pq.write_table(table.replace_schema_metadata(metadata), copy.target)
    assert copy.is_complete()
    write_parquet(copy.source, IMAGES[:3], LABELS[:3])
    with pytest.raises(UserError, match=r"0\.parquet is the copy of another file, not of .*in/0\."):
        copy.is_complete()


def test_a_truncated_copy_is_refused(tmp_path: Path) -> None:
    _, planned = copies(tmp_path)
    write_copies(planned)
    os.truncate(planned[0].target, planned[0].target.stat().st_size - 1)
    with pytest.raises(UserError, match=r"copies/0\.parquet exists and cannot be read"):
        planned[0].is_complete()
