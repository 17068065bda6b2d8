"""Scanning data for an index: one pass over the headers of archives or files, without unpacking.

In: an ImageFolder tree, a tar with one folder per class, or a folder and a file of labels.
Out: a `Scan` with rows for `pipeline.data.index.write`, and the members that are not images.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from pipeline.data.classes import Classes
from pipeline.data.image_check import is_image_name
from pipeline.data.label_files import LabelFile
from pipeline.data.scan_rows import Member, ReportProgress, Scan, is_utf8, printable
from pipeline.data.tar_members import check_complete, file_size, tar_members
from pipeline.errors import UserError, first_few, warn

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


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
    members, links, folders, size = [], [], set(), file_size(path)
    if not is_utf8(path.name):
        raise UserError(f"{printable(path)}: the name of an archive must be UTF-8; rename it")
    for info in tar_members(path, others=True):
        name = info.name.removeprefix("./")
        if info.isdir():
            folders.add(name)
            continue
        if not info.isfile():
            links.append(name)
            continue
        check_complete(path, info, size)
        members.append((name, info.offset_data, info.size))
    labels, classes = _classes(path, [name for name, _, _ in members], folders, read_classes)
    scan = Scan()
    for name in links:
        scan.reject(name, path.name, "a link in the tar; pack the images themselves (tar -h)")
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
        _add_file(scan, root, name, label)
        progress(number)
    return scan, classes


def scan_labelled_folder(
    root: Path,
    labels: LabelFile,
    progress: ReportProgress = lambda _: None,
    partial: bool = False,
) -> Scan:
    """Scan a folder whose images' labels are in a file, such as ILSVRC's flat validation images.

    Args:
        root: the folder.
        labels: the label of each file, by its path in the folder, with or without its ending.
        progress: called with the number of files scanned so far.
        partial: accept labels of images that the folder lacks.

    Raises:
        UserError: no such folder, an image without a label, or a label without an image.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    scan = Scan()
    for number, name in enumerate(list_folder(root)[0], 1):
        label = labels.label(name)
        if label is not None:
            _add_file(scan, root, name, label)
        elif is_image_name(name):
            raise UserError(
                f"{labels.path} has no line for {printable(root / name)}; add its class, or move "
                "the image out of the folder"
            )
        else:
            scan.reject(name, name, f"no line in {labels.path.name}")
        progress(number)
    missing = list(labels.unused())
    if missing and not partial:
        raise UserError(
            f"{root} lacks {len(missing):,} of the images that {labels.path} lists, first "
            f"{missing[0]}; is the copy complete? --partial accepts this"
        )
    return scan


def _add_file(scan: Scan, root: Path, name: str, label: int) -> None:
    """Add one file of a folder to a scan."""
    try:
        with (root / name).open("rb") as source:
            length = os.fstat(source.fileno()).st_size
            scan.add(Member(name, name, 0, length, label), source)
    except OSError as error:
        scan.reject(name, name, error.strerror or str(error))


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """Files below a folder, sorted, and the folders directly in it; without hidden ones.

    Links to folders are followed, except links to a folder that contains the link. Links to nothing
    count as files, so that a scan names them.

    Raises:
        UserError: a folder cannot be read.
    """
    names, folders = [], []
    ancestors = {str(root): {os.path.realpath(root)}}  # real paths of a folder and its parents
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse_unreadable):
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
            if not name.startswith(".") and _is_file_or_broken_link(f"{folder}/{name}")
        ]
    return sorted(names), folders


def _is_file_or_broken_link(path: str) -> bool:
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions")


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
            f"{source} holds {len(names):,} files and no images in class folders; put them "
            "in one folder per class, CLASS/IMAGE, or list their classes: folder --labels FILE; "
            "pictures without labels, for objective.targets reference, in one folder inside it"
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
