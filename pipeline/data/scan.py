"""Scanning data for an index: one pass over the headers of archives or files, without unpacking.

In: ILSVRC-2012's archives as downloaded, an ImageFolder tree, or a tar with one folder per class.
Out: a `Scan` with rows for `pipeline.data.index.write`, and the members that are not images.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.data.classes import Classes
from pipeline.data.scan_rows import Member, Scan, is_utf8, printable
from pipeline.data.tar_members import check_complete, file_size, tar_members
from pipeline.errors import UserError, first_few, warn

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})

ReportProgress = Callable[[int], None]
ILSVRC_COUNTS = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC-2012


def scan_ilsvrc_train(
    path: Path, labels: dict[str, int], progress: ReportProgress = lambda _: None
) -> Scan:
    """Scan the training tar, which contains one tar per class, named by its WordNet id.

    Args:
        path: ILSVRC2012_img_train.tar as downloaded.
        labels: label of each WordNet id.
        progress: called with the number of bytes scanned so far.
    """
    scan, size = Scan(), file_size(path)
    with path.open("rb") as source:
        for outer in tar_members(path):
            check_complete(path, outer, size)
            wnid = PurePosixPath(outer.name).stem
            if wnid not in labels:
                raise UserError(f"{path} contains {outer.name}, a class the development kit lacks")
            end = outer.offset_data + outer.size
            for inner in tar_members(path, outer.offset_data, end):
                name = f"{wnid}/{inner.name}"
                member = Member(name, path.name, inner.offset_data, inner.size, labels[wnid])
                scan.add(member, source)
                progress(inner.offset_data + inner.size)
    return scan


def scan_ilsvrc_val(
    path: Path, labels: list[int], progress: ReportProgress = lambda _: None
) -> Scan:
    """Scan the validation tar; the number in an image's name is its position in ``labels``."""
    scan, size = Scan(), file_size(path)
    with path.open("rb") as source:
        for info in tar_members(path):
            check_complete(path, info, size)
            name = PurePosixPath(info.name).name
            digits = PurePosixPath(name).stem.rpartition("_")[2]
            if not digits.isdigit() or not 1 <= int(digits) <= len(labels):
                scan.reject(info.name, path.name, "no label in the kit")
                continue
            label = labels[int(digits) - 1]
            scan.add(Member(name, path.name, info.offset_data, info.size, label), source)
            progress(info.offset_data + info.size)
    return scan


def scan_tar(
    path: Path,
    progress: ReportProgress = lambda _: None,
    read_classes: Callable[[list[str]], Classes] | None = None,
) -> tuple[Scan, Classes]:
    """Scan a tar with one folder per class.

    Args:
        path: the tar.
        progress: called with the number of bytes scanned so far.
        read_classes: returns the classes, in the order of their labels, for the names of the class
            folders, which must be among them; by default the folders' names, sorted.

    Returns:
        The scan and the classes.

    Raises:
        UserError: the tar cannot be read, or a folder is not among the classes.
    """
    members, folders, size = [], set(), file_size(path)
    if not is_utf8(path.name):
        raise UserError(f"{printable(path)}: the name of an archive must be UTF-8; rename it")
    for info in tar_members(path, folders=True):
        name = info.name.removeprefix("./")
        if info.isdir():
            folders.add(name)
            continue
        check_complete(path, info, size)
        members.append((name, info.offset_data, info.size))
    labels, classes = _classes(path, [name for name, _, _ in members], folders, read_classes)
    scan = Scan()
    with path.open("rb") as source:
        for name, offset, length in members:
            label = _label(labels, name)
            if label is None:
                scan.reject(name, path.name, "not in a class folder")
                continue
            scan.add(Member(name, path.name, offset, length, label), source)
            progress(offset + length)
    return scan, classes


def scan_folder(
    root: Path,
    progress: ReportProgress = lambda _: None,
    read_classes: Callable[[list[str]], Classes] | None = None,
) -> tuple[Scan, Classes]:
    """Scan an ImageFolder tree, ROOT/class/image; links are followed.

    Args:
        root: the folder.
        progress: called with the number of files scanned so far.
        read_classes: see `scan_tar`.

    Returns:
        The scan and the classes.

    Raises:
        UserError: no such folder, or a class folder is not among the classes.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    names, folders = list_folder(root)
    labels, classes = _classes(root, names, folders, read_classes)
    scan = Scan()
    for number, name in enumerate(names, 1):
        label = _label(labels, name)
        if label is None:
            scan.reject(name, name, "not in a class folder")
            continue
        try:
            with (root / name).open("rb") as source:
                length = os.fstat(source.fileno()).st_size
                scan.add(Member(name, name, 0, length, label), source)
        except OSError as error:
            scan.reject(name, name, error.strerror or str(error))
        progress(number)
    return scan, classes


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """Files below a folder, sorted, and the folders directly in it; without hidden ones.

    Links to folders are followed, except links to a folder that contains the link.
    """
    names, folders = [], []
    ancestors = {str(root): {os.path.realpath(root)}}  # real paths of a folder and its parents
    for folder, below, files in os.walk(root, followlinks=True):
        relative = PurePosixPath(os.path.relpath(folder, root))
        enclosing = ancestors.pop(folder)
        real = {name: os.path.realpath(f"{folder}/{name}") for name in below}
        below[:] = [n for n in below if not n.startswith(".") and real[n] not in enclosing]
        ancestors |= {os.path.join(folder, name): enclosing | {real[name]} for name in below}
        if folder == str(root):
            folders = sorted(below)
        names += [
            (relative / name).as_posix()
            for name in files
            if not name.startswith(".") and os.path.isfile(f"{folder}/{name}")
        ]
    return sorted(names), folders


def _classes(
    source: Path,
    names: list[str],
    folders: Iterable[str],
    read_classes: Callable[[list[str]], Classes] | None,
) -> tuple[dict[str, int], Classes]:
    """The label of each class folder, and the classes.

    Without ``read_classes`` the folders of the first level, sorted, are the classes, as in
    ImageFolder; a folder without files has a label too.

    Raises:
        UserError: the folders are the parts of a data set, or cannot be classes.
    """
    parts = [PurePosixPath(name).parts for name in names]
    by_file = {part[0] for part in parts if len(part) > 1}
    by_folder = {PurePosixPath(name).parts[0] for name in folders if name not in ("", ".")}
    class_folders = sorted(by_file | {name for name in by_folder if not name.startswith(".")})
    for name in class_folders:
        if not is_utf8(name):
            raise UserError(
                f"{printable(source)}: the name of the class folder {printable(name)} is not "
                "UTF-8; rename it"
            )
    if not by_file:
        raise UserError(
            f"{source} holds {len(names):,} files and no images in class folders; images must be "
            "in one folder per class, CLASS/IMAGE"
        )
    if read_classes is not None:
        classes = read_classes(class_folders)
        return {name: label for label, name in enumerate(classes.identities)}, classes
    depths = [len(part) for part in parts if len(part) > 1]
    if {name.lower() for name in by_file} <= _SPLITS and max(depths) > 2:
        raise UserError(
            f"{source} holds {', '.join(sorted(by_file))}, which are parts of a data set and not "
            "classes; index each part separately (a folder CLASS/IMAGE), or list these classes "
            "with --classes"
        )
    if min(depths) > 2:
        warn(
            f"the images of {source} are deeper than CLASS/IMAGE; its {len(class_folders)} folders "
            f"are taken as classes: {first_few(class_folders)}"
        )
    labels = {name: label for label, name in enumerate(class_folders)}
    return labels, Classes(class_folders, class_folders)


def _label(labels: dict[str, int], name: str) -> int | None:
    parts = PurePosixPath(name).parts
    return labels[parts[0]] if len(parts) > 1 else None


@dataclass(frozen=True)
class DevelopmentKit:
    """The content of ILSVRC2012_devkit_t12, with labels instead of its class numbers.

    A label is the position of the class's WordNet id among the sorted ids of the leaf classes. All
    published weights use this order. The kit's class numbers have another order.
    """

    wnids: list[str]  # sorted; wnids[label] is the class's id
    names: list[str]  # name of each label, for display
    validation_labels: list[int]  # label of each validation image, in file order

    @property
    def classes(self) -> Classes:
        """The classes, identified by their WordNet ids."""
        return Classes(self.names, self.wnids)


def read_development_kit(path: Path) -> DevelopmentKit:
    """Read meta.mat and the validation ground truth from the kit's tar.gz.

    Raises:
        UserError: the kit cannot be read, or its files do not agree.
    """
    from scipy.io import loadmat  # slow to import

    file_size(path)
    try:
        with gzip.open(path) as compressed:
            content = compressed.read()  # reading to the end compares the checksum
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            wanted = {"meta.mat": b"", "ILSVRC2012_validation_ground_truth.txt": b""}
            for member in archive:
                if (name := PurePosixPath(member.name).name) in wanted and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None, "None only for members that are not files"
                    wanted[name] = file.read()
        meta, truth = wanted.values()
        if not meta or not truth:
            raise ValueError("meta.mat or the validation ground truth is missing")
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        leaves = leaves[np.argsort(leaves["WNID"].astype(str))]
        label_of = {int(number): label for label, number in enumerate(leaves["ILSVRC2012_ID"])}
        numbers = [int(line) for line in truth.split()]
    except Exception as error:  # gzip, tar and scipy raise errors of many types
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as ILSVRC's development kit: {reason}; download it again"
        ) from None
    unknown = sorted(set(numbers) - label_of.keys())
    if unknown:
        raise UserError(
            f"{path}: the ground truth contains classes that meta.mat lacks: "
            f"{first_few(list(map(str, unknown)))}"
        )
    return DevelopmentKit(
        wnids=[str(wnid) for wnid in leaves["WNID"]],
        names=[str(synonyms).split(",")[0] for synonyms in leaves["words"]],
        validation_labels=[label_of[number] for number in numbers],
    )
