"""Making an index: one pass over the headers of archives or files, nothing unpacked.

In: ILSVRC-2012's archives as downloaded, an ImageFolder tree, or a tar with one folder a class.
Out: a `Scan` of rows for `pipeline.data.index.write`, and the members that are no images.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError, brief

_HEAD = 16 * 1024  # bytes read of each member; longer headers (EXIF, ICC) take the whole member
_TAIL = 64  # bytes in which the end mark is looked for

Progress = Callable[[int], None]


class Member(NamedTuple):
    """Where one image's bytes are."""

    id: str
    file: str
    offset: int
    length: int
    label: int


@dataclass
class Scan:
    """Rows found so far, as columns, and what was no image."""

    columns: dict[str, list] = field(
        default_factory=lambda: {
            name: []
            for name in (
                *Member._fields,
                *("width", "height", "format", "mode"),
            )
        }
    )
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (member, why)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def table(self) -> pa.Table:
        """The rows as an Arrow table with the index's column names."""
        return pa.table(self.columns)

    def add(self, member: Member, source: BinaryIO, verify: bool) -> None:
        """Look at one member; with ``verify`` decode all of it."""
        try:
            facts = _look(source, member.offset, member.length, verify)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            why = brief(error)
            if isinstance(error, UnidentifiedImageError):
                why = "not an image" if member.length else "empty"
            self.rejected.append((f"{member.file}: {member.id}", why))
            return
        for name, value in zip(self.columns, (*member, *facts), strict=True):
            self.columns[name].append(value)


def _look(source: BinaryIO, offset: int, length: int, verify: bool) -> tuple[int, int, str, str]:
    """Width, height, format and mode from an image's header; its end is checked too."""
    descriptor = source.fileno()
    head = os.pread(descriptor, length if verify else min(length, _HEAD), offset)
    try:
        image = Image.open(io.BytesIO(head))
    except (UnidentifiedImageError, OSError, SyntaxError):
        if len(head) == length:
            raise
        head = os.pread(descriptor, length, offset)
        image = Image.open(io.BytesIO(head))
    if verify:
        image.load()
        return image.width, image.height, image.format, image.mode
    tail = min(length, _TAIL)
    if not _ends(image.format, os.pread(descriptor, tail, offset + length - tail)):
        # Some writers pad the end: only a full decode tells padding from a missing end.
        Image.open(io.BytesIO(os.pread(descriptor, length, offset))).load()
    return image.width, image.height, image.format, image.mode


def _ends(kind: str | None, tail: bytes) -> bool:
    """Whether the last bytes hold the format's end mark, where it has one."""
    marks = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    return kind not in marks or marks[kind] in tail


def tar_members(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Regular files of the tar that begins at byte ``start``; offsets count from the file's 0."""
    try:
        with path.open("rb", buffering=_HEAD) as file:
            file.seek(start)
            # Members are not kept: a million TarInfo objects would cost gigabytes.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()
                    if member.isfile():
                        yield member
                    last = member.offset_data + member.size
                    if end is not None and last > end:
                        raise tarfile.ReadError("a class archive is longer than its place")
                # tarfile takes a damaged header for the end; the end is a block of zeros.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"no member's header at byte {archive.offset:,}")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a tar: {error}; is the download complete?"
        ) from None


def _check_size(path: Path, member: tarfile.TarInfo, size: int) -> None:
    if member.offset_data + member.size > size:
        raise UserError(
            f"{path} ends inside its member {member.name}; the download is not complete"
        )


def scan_ilsvrc_train(
    path: Path, labels: dict[str, int], verify: bool = False, progress: Progress = lambda n: None
) -> Scan:
    """The training tar: a tar of one tar a class, named by its WordNet id.

    Args:
        path: ILSVRC2012_img_train.tar as downloaded.
        labels: label of each WordNet id.
        verify: decode every image, not only its header.
        progress: called with the number of bytes passed so far.
    """
    scan, size = Scan(), _size(path)
    with path.open("rb") as source:
        for outer in tar_members(path):
            _check_size(path, outer, size)
            wnid = PurePosixPath(outer.name).stem
            if wnid not in labels:
                raise UserError(f"{path} holds {outer.name}, a class the development kit lacks")
            end = outer.offset_data + outer.size
            for inner in tar_members(path, outer.offset_data, end):
                name = f"{wnid}/{inner.name}"
                scan.add(
                    Member(name, path.name, inner.offset_data, inner.size, labels[wnid]),
                    source,
                    verify,
                )
                progress(inner.offset_data + inner.size)
    return scan


def scan_ilsvrc_val(
    path: Path, labels: list[int], verify: bool = False, progress: Progress = lambda n: None
) -> Scan:
    """The validation tar: flat, ILSVRC2012_val_00000001.JPEG being the first of ``labels``."""
    scan, size = Scan(), _size(path)
    with path.open("rb") as source:
        for info in tar_members(path):
            _check_size(path, info, size)
            name = PurePosixPath(info.name).name
            digits = PurePosixPath(name).stem.rpartition("_")[2]
            if not digits.isdigit() or not 1 <= int(digits) <= len(labels):
                scan.rejected.append((f"{path.name}: {info.name}", "no label in the kit"))
                continue
            label = labels[int(digits) - 1]
            member = Member(name, path.name, info.offset_data, info.size, label)
            scan.add(member, source, verify)
            progress(info.offset_data + info.size)
    return scan


def scan_tar(
    path: Path, verify: bool = False, progress: Progress = lambda n: None
) -> tuple[Scan, list[str]]:
    """A tar with one folder a class; the scan and the class names, sorted."""
    members, size = [], _size(path)
    for info in tar_members(path):
        _check_size(path, info, size)
        members.append((info.name.removeprefix("./"), info.offset_data, info.size))
    scan, classes = Scan(), _classes(name for name, _, _ in members)
    with path.open("rb") as source:
        for name, offset, length in members:
            label = _label(classes, name)
            if label is None:
                scan.rejected.append((f"{path.name}: {name}", "lies in no class folder"))
                continue
            scan.add(Member(name, path.name, offset, length, label), source, verify)
            progress(offset + length)
    return scan, list(classes)


def scan_folder(
    root: Path, verify: bool = False, progress: Progress = lambda n: None
) -> tuple[Scan, list[str]]:
    """An ImageFolder tree, ROOT/class/image; the scan and the class names, sorted."""
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:])
    )
    scan, classes = Scan(), _classes(names)
    for number, name in enumerate(names):
        label = _label(classes, name)
        if label is None:
            scan.rejected.append((name, "lies in no class folder"))
            continue
        try:
            with (root / name).open("rb") as source:
                length = os.fstat(source.fileno()).st_size
                scan.add(Member(name, name, 0, length, label), source, verify)
        except OSError as error:
            scan.rejected.append((name, str(error)))
        progress(number + 1)
    return scan, list(classes)


def _classes(names: Iterable[str]) -> dict[str, int]:
    """Label of each first-level folder that holds a file, in sorted order, as ImageFolder does."""
    folders = {parts[0] for name in names if len(parts := PurePosixPath(name).parts) > 1}
    return {folder: label for label, folder in enumerate(sorted(folders))}


def _label(classes: dict[str, int], name: str) -> int | None:
    parts = PurePosixPath(name).parts
    return classes[parts[0]] if len(parts) > 1 else None


def _size(path: Path) -> int:
    if not path.is_file():
        raise UserError(f"no file {path}")
    return path.stat().st_size


@dataclass(frozen=True)
class DevelopmentKit:
    """What ILSVRC2012_devkit_t12 says, its own class numbers turned into labels.

    A label is the place of the class's WordNet id among the sorted ids of the leaf classes, the
    order that every published set of weights uses; the kit's own numbers are not in that order.
    """

    wnids: list[str]  # sorted, so that wnids[label] is the class's id
    names: list[str]  # of each label, for people
    validation_labels: list[int]  # of each validation image, in file order


def read_development_kit(path: Path) -> DevelopmentKit:
    """Read meta.mat and the validation ground truth from the kit's tar.gz."""
    from scipy.io import loadmat  # for this alone

    _size(path)
    try:
        with gzip.open(path) as file:
            content = file.read()  # to its end, where its checksum is
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            wanted = {"meta.mat": b"", "ILSVRC2012_validation_ground_truth.txt": b""}
            for member in archive:
                if (name := PurePosixPath(member.name).name) in wanted and member.isfile():
                    wanted[name] = archive.extractfile(member).read()
        meta, truth = wanted.values()
        if not meta or not truth:
            raise ValueError("meta.mat or the validation ground truth is missing")
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        leaves = leaves[np.argsort(leaves["WNID"].astype(str))]
        label_of = {int(number): label for label, number in enumerate(leaves["ILSVRC2012_ID"])}
        numbers = [int(line) for line in truth.split()]
    except Exception as error:  # gzip, tar and scipy raise errors of many types: all mean one thing
        why = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as ILSVRC's development kit: {why}; download it again"
        ) from None
    unknown = sorted(set(numbers) - label_of.keys())
    if unknown:
        raise UserError(f"{path}: the ground truth names classes {unknown[:5]} that meta.mat lacks")
    return DevelopmentKit(
        wnids=[str(wnid) for wnid in leaves["WNID"]],
        names=[str(words).split(",")[0] for words in leaves["words"]],
        validation_labels=[label_of[number] for number in numbers],
    )
