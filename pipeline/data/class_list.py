"""The classes of ``--classes``, in the order of their labels."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.text import did_you_mean
from pipeline.data import index
from pipeline.data.classes import Classes
from pipeline.errors import UserError, first_few

_PARQUET = b"PAR1"  # a Parquet file's first bytes


def read_class_list(path: Path, folders: Sequence[str]) -> Classes:
    """Read the classes of ``--classes``: a text file with one class per line, or an index.

    Args:
        path: the file.
        folders: names of the data's class folders.

    Raises:
        UserError: the file is missing, not text or empty, lists a class twice, or lacks the class
            of a folder.
    """
    if not path.is_file():
        raise UserError(f"--classes: no file {path}; it is a list of class ids, or an index")
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    if is_parquet:
        classes = index.read(str(path), option="--classes").classes
    else:
        classes = _read_text(path, folders)
    _check_folders(classes, folders, path)
    return classes


def _read_text(path: Path, folders: Sequence[str]) -> Classes:
    """Read one class per line.

    A line is a class id, or an id, a tab or a space, and a name. If a line with spaces equals a
    folder's name, then every line without a tab is an id, spaces included.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--classes: {path} cannot be read as text ({error}); give one class id per line, or "
            "an index (.parquet)"
        ) from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"--classes: {path} is empty; give one class id per line")
    with_spaces = {folder for folder in folders if " " in folder}
    whole_lines = any(line in with_spaces for _, line in rows)
    classes: dict[str, str] = {}
    for number, line in rows:
        separator = "\t" if "\t" in line or whole_lines else None
        class_id, *name = line.split(separator, 1)
        if class_id in classes:
            raise UserError(f"--classes: {path} lists {class_id!r} twice, again in line {number}")
        classes[class_id] = name[0].strip() if name else class_id
    return Classes(list(classes.values()), list(classes))


def _check_folders(classes: Classes, folders: Sequence[str], path: Path) -> None:
    identities = set(classes.identities)
    if len(identities) < len(classes):
        raise UserError(
            f"--classes: two classes of {path} have the same name, and it has no class ids; "
            f"{index.REMEDY}"
        )
    unknown = sorted(set(folders) - identities)
    if unknown:
        hint = did_you_mean(unknown[0], classes.identities)
        names = first_few([repr(name) for name in unknown], 3)
        raise UserError(
            f"--classes: the {len(classes)} classes of {path} do not include the class folder(s) "
            f"{names}{hint}"
        )
