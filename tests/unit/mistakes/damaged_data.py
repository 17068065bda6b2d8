"""Mistakes: damaged indices, archives, images, mean images, and data sets of arrays."""

import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.index import METADATA_KEY
from tests.helpers import images
from tests.unit.mistakes import whole
from tests.unit.mistakes.case import EVALUATE, Case

INDEX, PACK = "tools/index.py", "tools/pack.py"
Words = Sequence[object]


def joined(path: Path) -> Words:
    return (INDEX, "join", path, "--out", path.with_name("joined.parquet"))


def evaluated(path: Path, *options: object) -> Words:
    return (EVALUATE, "--data.val", path, *whole.NET, *options, "--dry_run", "true")


def decoded(path: Path) -> Words:
    """An evaluation, which reads every image."""
    return (EVALUATE, "--data.val", path, *whole.NET, "--output", path.with_name("evaluation"))


def of_index(number: str, damage: whole.Damage, line: str) -> Case:
    def argv(folder: Path) -> Words:
        return joined(whole.damage_file(whole.index(folder), damage))

    return Case(number, argv, rf"photos\.parquet.*{line}")


def of_table(number: str, change: Callable[[pa.Table], pa.Table], line: str) -> Case:
    """A run on an index whose rows or metadata are changed."""

    def argv(folder: Path) -> Words:
        path = whole.index(folder)
        pq.write_table(change(pq.read_table(path)), path)
        return evaluated(path)

    return Case(number, argv, rf"photos\.parquet.*{line}")


def of_metadata(number: str, line: str, **changes: Any) -> Case:
    def change(table: pa.Table) -> pa.Table:
        values = json.loads(table.schema.metadata[METADATA_KEY]) | changes
        kept = {name: value for name, value in values.items() if value is not None}
        return table.replace_schema_metadata({METADATA_KEY: json.dumps(kept).encode()})

    return of_table(number, change, line)


def column(name: str, values: list) -> Callable[[pa.Table], pa.Table]:
    """Replace a column; ``values`` are repeated."""

    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        return table.set_column(position, name, pa.array((values * len(table))[: len(table)]))

    return change


def a_folder(folder: Path) -> Words:
    (folder / "photos.parquet").mkdir()
    return joined(folder / "photos.parquet")


INDICES = [
    of_index("index: empty", whole.empty, "cannot be read as an index"),
    of_index("index: half", whole.half, "cannot be read as an index"),
    of_index("index: garbage", whole.garbage, "cannot be read as an index"),
    Case("index: a folder", a_folder, r"no file .*photos\.parquet"),
    of_table("index: no metadata", lambda t: t.replace_schema_metadata(), "not an index of tools"),
    of_metadata("index: another version", "version 7", version=7),
    of_table("index: no column", lambda t: t.drop_columns(["width"]), "lacks the columns width"),
    of_table(
        "index: label too high",
        column("label", [0, 9]),
        "(4 labels are outside|4 of 8 .* label outside)",
    ),
]


def of_archive(number: str, damage: whole.Damage, line: str) -> Case:
    def argv(folder: Path) -> Words:
        path = whole.index(folder)
        whole.damage_file(folder / "photos.tar", damage)
        return decoded(path)

    return Case(number, argv, line)


def without_archive(folder: Path) -> Words:
    path = whole.index(folder)
    (folder / "photos.tar").unlink()
    return decoded(path)


def offset_beyond(folder: Path) -> Words:
    path = whole.index(folder)
    table = pq.read_table(path)
    pq.write_table(column("offset", [1 << 30])(table), path)
    return decoded(path)


def broken_header(folder: Path) -> Words:
    """Damage the header of the third member of a tar."""
    whole.index(folder)
    data = bytearray((folder / "photos.tar").read_bytes())
    begin = data.index(b"a/2.jpg\0")
    data[begin : begin + 512] = whole.garbage(bytes(512))
    (folder / "photos.tar").write_bytes(data)
    return (INDEX, "tar", folder / "photos.tar", "--out", folder / "new.parquet")


ARCHIVES = [
    Case("archive: none", without_archive, r"no file .*photos\.tar, listed in .*photos\.parquet"),
    of_archive("archive: cut", whole.half, r"photos\.tar is shorter than its index"),
    of_archive("archive: longer", lambda d: d + bytes(512), r"photos\.tar is longer than"),
    of_archive(
        "archive: other bytes",
        lambda d: np.random.default_rng(0).bytes(len(d)),
        r"8 image\(s\) in .*photos\.parquet do not decode: a/0\.jpg",
    ),
    Case(
        "archive: offset beyond its end",
        offset_beyond,
        r"photos\.tar is shorter than its index|photos\.parquet.* beyond the end of its archive",
    ),
    Case("archive: a member's header", broken_header, r"photos\.tar cannot be read as a tar"),
]


def folder_of(folder: Path, damage: whole.Damage) -> Path:
    """Write a class with one good and one damaged JPEG file; returns the path for its index."""
    (folder / "photos" / "a").mkdir(parents=True)
    (folder / "photos" / "a" / "good.jpg").write_bytes(whole.jpeg())
    (folder / "photos" / "a" / "bad.jpg").write_bytes(damage(whole.jpeg()))
    return folder / "photos.parquet"


def indexed(number: str, damage: whole.Damage, line: str, *options: str) -> Case:
    """A file that tools/index.py leaves out or indexes, and names."""

    def argv(folder: Path) -> Words:
        out = folder_of(folder, damage)
        return (INDEX, "folder", folder / "photos", "--out", out, *options)

    return Case(number, argv, line, code=0)


def changed_since(number: str, damage: whole.Damage, line: str) -> Case:
    """A file that was damaged after it was indexed."""

    def argv(folder: Path) -> Words:
        members = {f"{'ab'[k % 2]}/{k}.jpg": whole.jpeg() for k in range(8)}
        data = whole.jpeg()
        changed = damage(data)
        members["a/2.jpg"] = data
        images.index_tar(folder / "photos.tar", members)
        tar = (folder / "photos.tar").read_bytes()
        begin = tar.index(data, tar.index(b"a/2.jpg\0"))
        changed = changed[: len(data)].ljust(len(data), b"\0")
        (folder / "photos.tar").write_bytes(tar[:begin] + changed + tar[begin + len(data) :])
        return decoded(folder / "photos.parquet")

    return Case(number, argv, line)


IMAGES = [
    indexed("image: cut", whole.half, r"left out .*bad\.jpg: .*truncated"),
    indexed("image: empty", whole.empty, r"left out .*bad\.jpg: empty"),
    indexed("image: garbage", whole.garbage, r"left out .*bad\.jpg: not an image"),
    # libjpeg decodes it, with grey instead of the lost part. It is accepted, as by other readers.
    indexed("image: zeros in its middle", whole.zeros_in_the_middle, "2 images of 1 class"),
    changed_since("image: another size than indexed", lambda _: whole.jpeg(24, 30), "a/2.jpg"),
    changed_since("image: emptied since", whole.empty, r"photos\.parquet do not decode: a/2\.jpg"),
    changed_since("image: cut since", lambda d: d[:100], r"do not decode: a/2\.jpg"),
]


def of_mean(number: str, write: Callable[[Path], object], line: str) -> Case:
    def argv(folder: Path) -> Words:
        write(folder / "mean.npy")
        options = ("--data.mean", folder / "mean.npy")
        return evaluated(whole.index(folder), *options)

    return Case(number, argv, rf"data\.mean: .*mean\.npy is {line}")


def cut_mean(path: Path) -> None:
    np.save(path, np.zeros((1, 28, 28), np.float32))
    whole.damage_file(path, whole.half)


def broken_mean(path: Path) -> None:
    np.save(path, np.zeros((1, 28, 28), np.float32))
    whole.damage_file(path, whole.replaced(b"(1, 28, 28)", b"((1, 28, 28"))


MEANS = [
    of_mean("mean: empty", lambda p: p.write_bytes(b""), "not an .npy file of numbers"),
    of_mean("mean: cut", cut_mean, "not an .npy file of numbers"),
    of_mean(
        "mean: shape", lambda p: np.save(p, np.zeros((3, 28, 28))), "not an image of the shape"
    ),
    of_mean("mean: NaN", lambda p: np.save(p, np.full((1, 28, 28), np.nan)), "not an image of"),
    of_mean("mean: pickle", lambda p: p.write_bytes(whole.code(p.parent)), "not an .npy file of"),
    of_mean("mean: header", broken_mean, "not an .npy file of numbers"),
    of_mean(
        "mean: objects", lambda p: np.save(p, np.array([{}]), allow_pickle=True), "not an .npy file"
    ),
]

DIGITS, LABELS = whole.idx(np.zeros((3, 4, 5))), whole.idx(np.array([0, 1, 1]))


def of_idx(number: str, digits: bytes, labels: bytes, line: str) -> Case:
    def argv(folder: Path) -> Words:
        (folder / "images").write_bytes(digits)
        (folder / "labels").write_bytes(labels)
        files = (folder / "images", folder / "labels")
        return (PACK, "idx", *files, "--out", folder / "x.tar")

    return Case(number, argv, line)


def of_cifar10(number: str, batch: bytes, line: str) -> Case:
    def argv(folder: Path) -> Words:
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            (folder / name).write_bytes(batch if name == "data_batch_3" else whole.cifar10())
        return (PACK, "cifar10", folder, "--out", folder / "out")

    return Case(number, argv, rf"data_batch_3 cannot be read as a CIFAR-10 batch.*{line}")


ARRAYS = [
    of_idx("IDX: cut", DIGITS[:-3], LABELS, r"images cannot be read as IDX"),
    of_idx("IDX: magic", b"\1" + DIGITS[1:], LABELS, r"images cannot be read as IDX"),
    of_idx("IDX: gzip cut", gzip.compress(DIGITS)[:-9], LABELS, r"images cannot be read as IDX"),
    of_idx(
        "IDX: gzip damaged",
        gzip.compress(DIGITS)[:12] + b"\xff" * 8 + gzip.compress(DIGITS)[20:],
        LABELS,
        r"images cannot be read as IDX",
    ),
    of_idx("IDX: labels of another length", DIGITS, LABELS[:-1], "labels cannot be read as IDX"),
    of_idx("IDX: no images", whole.idx(np.zeros((0, 4, 5))), whole.idx(np.zeros(0)), "no images"),
    of_idx("IDX: two channels", whole.idx(np.zeros((3, 4, 5, 2))), LABELS, r"images has shape"),
    of_cifar10("CIFAR: cut", whole.half(whole.cifar10()), ""),
    of_cifar10("CIFAR: empty", b"", ""),
    of_cifar10("CIFAR: code", whole.code(Path("/nowhere/file")), r"refused to load \S+\.exec"),
    of_cifar10("CIFAR: no labels", whole.cifar10(labels=None), "labels"),
    of_cifar10("CIFAR: label 12", whole.cifar10(labels=[4, 12]), "labels"),
    of_cifar10("CIFAR: one label", whole.cifar10(labels=[4]), "labels"),
    of_cifar10("CIFAR: no arrays", whole.cifar10(data=b"bytes"), ""),
    of_cifar10("CIFAR: another object", pickle.dumps([1, 2]), ""),
]


def of_kit(number: str, kit: bytes) -> Case:
    def argv(folder: Path) -> Words:
        (folder / "kit.tar.gz").write_bytes(kit)
        whole.index(folder)
        options = ("--devkit", folder / "kit.tar.gz", "--val", folder / "photos.tar")
        return (INDEX, "ilsvrc", *options, "--out", folder / "out")

    return Case(number, argv, r"kit\.tar\.gz cannot be read as ILSVRC's development kit")


TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KITS = [
    of_kit("kit: cut", whole.half(whole.development_kit("meta.mat", TRUTH))),
    of_kit("kit: no meta.mat", whole.development_kit(TRUTH)),
    of_kit("kit: another meta.mat", whole.development_kit("meta.mat", TRUTH)),
]

CASES: list[Case] = [*INDICES, *ARCHIVES, *IMAGES, *MEANS, *ARRAYS, *KITS]
