"""Indices and images for mistakes, and the commands that read them."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.data import index, scan
from pipeline.data.classes import Classes
from pipeline.data.index_format import METADATA_KEY
from pipeline.models.paper_nets import mlp
from pipeline.models.weight_classes import with_classes
from tests.helpers.images import encode, index_tar, picture, write_tar
from tests.helpers.runs import ROOT
from tests.unit.mistakes.case import EVALUATE, FINETUNE

INDEX = "tools/index.py"
DEMO = ("--config", ROOT / "configs" / "demo.yaml", "--dry_run", "true")
PNG = encode(picture(8, 8), "PNG")


def tree(folder: Path, *names: str, content: bytes = PNG) -> Path:
    """A folder ROOT with the given files; a name that ends in / is an empty folder."""
    for name in names:
        path = folder / "ROOT" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return folder / "ROOT"


def mixed(good: str, bad: Sequence[str], content: bytes) -> Callable[[Path], Sequence[object]]:
    """A command that indexes a tree with an image and other files."""

    def argv(folder: Path) -> Sequence[object]:
        tree(folder, *bad, content=content)
        return (INDEX, "folder", tree(folder, good))

    return argv


def indexed(folder: Path, *names: str) -> Path:
    """The index of a tree."""
    root = tree(folder, *names)
    rows, classes = scan.scan_folder(root)
    index.write(folder / "i.parquet", rows.table(), root, classes)
    return folder / "i.parquet"


def digits(skipped: str = "") -> list[str]:
    return [f"{digit}/x.png" for digit in range(10) if str(digit) not in skipped]


def weights(folder: Path, classes: Sequence[str] | None) -> Path:
    """Weights of the MLP for ten classes; they record ``classes``, if set."""
    state = mlp(10).state_dict()
    path = folder / "w.pth"
    recorded = classes and Classes(list(classes), list(classes))
    torch.save(with_classes(state, recorded) if recorded else dict(state), path)
    return path


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def damaged(change: Callable[[pa.Table, dict], Any]) -> Callable[[Path], Sequence[object]]:
    """A run on the index of a tar after ``change``, which may return another table."""

    def argv(folder: Path) -> Sequence[object]:
        members = {f"{label}/{k}.png": PNG for label in "ab" for k in range(2)}
        path = Path(index_tar(folder / "photos.tar", members).path)
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[METADATA_KEY])
        table = change(table, metadata) or table
        raw = metadata.get("raw", json.dumps(metadata)).encode()
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: raw}), path)
        return (FINETUNE, *DEMO, "--data.train", path, "--data.val", path)

    return argv


def column(name: str, values: Sequence[Any], kind: Any = None) -> Callable[[pa.Table, dict], Any]:
    """Replaces a column."""

    def change(table: pa.Table, _: dict) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values, kind))

    return change


def metadata(**values: Any) -> Callable[[pa.Table, dict], None]:
    """Replaces entries of the metadata; None removes one."""

    def change(_: pa.Table, entries: dict) -> None:
        entries |= values
        for name, value in values.items():
            if value is None:
                del entries[name]

    return change


def folder_of(*names: str, content: bytes = PNG, more: Sequence[object] = ()) -> Any:
    """A command that indexes a tree."""
    return lambda folder: (INDEX, "folder", tree(folder, *names, content=content), *more)


def folder_with_link(folder: Path) -> Sequence[object]:
    root = tree(folder, "a/x.png", "b/", "c/")
    os.symlink("nowhere", root / "c" / "x.png")
    return (INDEX, "folder", root)


def index_into_a_pipe(folder: Path) -> Sequence[object]:
    """A command with a pipe as output. A device is not used, because a failing test would replace
    it."""
    os.mkfifo(folder / "pipe")
    return (INDEX, "folder", tree(folder, "a/x.png"), "--out", folder / "pipe")


def non_utf8(name: bytes) -> Callable[[Path], Sequence[object]]:
    def argv(folder: Path) -> Sequence[object]:
        root = tree(folder, "a/x.png")
        path = root / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PNG)
        return (INDEX, "folder", root)

    return argv


def with_classes_file(text: str, *names: str) -> Callable[[Path], Sequence[object]]:
    def argv(folder: Path) -> Sequence[object]:
        (folder / "classes.txt").write_text(text)
        return (INDEX, "folder", tree(folder, *names), "--classes", folder / "classes.txt")

    return argv


def tar_of(*names: str, out: str = "i.parquet") -> Callable[[Path], Sequence[object]]:
    def argv(folder: Path) -> Sequence[object]:
        path = write_tar(folder / "x.tar", dict.fromkeys(names, PNG))
        return (INDEX, "tar", path, "--out", folder / out)

    return argv


def compressed_tar(folder: Path) -> Sequence[object]:
    with tarfile.open(folder / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/x.png"), io.BytesIO())
    return (INDEX, "tar", folder / "x.tar.gz")


def join(*names: str, out: str = "j.parquet") -> Callable[[Path], Sequence[object]]:
    def argv(folder: Path) -> Sequence[object]:
        for name in {*names} - {"other"}:
            index_tar(folder / f"{name}.tar", {"a/x.png": PNG, "b/y.png": PNG})
        if "other" in names:
            index_tar(folder / "other.tar", {"a/x.png": PNG, "c/y.png": PNG})
        paths = [folder / f"{name}.parquet" for name in names]
        return (INDEX, "join", *paths, "--out", folder / out)

    return argv


def mean(*options: object, out: str = "m.npy") -> Callable[[Path], Sequence[object]]:
    def argv(folder: Path) -> Sequence[object]:
        path = index_tar(folder / "x.tar", {"a/x.png": PNG}).path
        return (INDEX, "mean", path, "--out", folder / out, *options)

    return argv


def split_folders(folder: Path) -> Sequence[object]:
    return (INDEX, "folder", tree(folder, "train/n1/x.png", "train/n2/x.png", "val/x.png"))


def finetune(skipped: str, *options: object) -> Callable[[Path], Sequence[object]]:
    """Validation images that lack some of the ten digits."""
    return lambda folder: (
        *(FINETUNE, *DEMO, "--data.val", indexed(folder, *digits(skipped)), *options),
    )


def evaluate(
    skipped: str, classes: Sequence[str] | None, *options: object
) -> Callable[[Path], Sequence[object]]:
    """Weights of ten classes, on images that lack some."""
    return lambda folder: (
        *(EVALUATE, *DEMO, "--data.val", indexed(folder, *digits(skipped))),
        *("--model.weights", weights(folder, classes), *options),
    )
