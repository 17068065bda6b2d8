"""The classes of ``--classes``: which classes there are, and in which order."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.text import did_you_mean
from pipeline.data import index
from pipeline.data.classes import Classes
from pipeline.errors import UserError, first_few

_PARQUET = b"PAR1"  # a Parquet file's first bytes


def read_class_list(path: Path, folders: Sequence[str]) -> Classes:
    """Read the classes of ``--classes``: a text file with a class a line, or another index.

    Args:
        path: the file.
        folders: names of the data's class folders.

    Raises:
        UserError: no such file, no text, no classes, a class twice, or a folder that is not among
            the classes.
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
    """Read a class a line.

    A line is a class id, or an id, a tab or a space, and a name. Where a folder of the data is
    named by a whole line with blanks in it, lines without a tab are ids as a whole.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--classes: {path} cannot be read as text ({error}); give a class id a line, or an "
            "index (.parquet)"
        ) from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"--classes: {path} is empty; give a class id a line")
    with_blanks = {folder for folder in folders if " " in folder}
    whole_lines = any(line in with_blanks for _, line in rows)
    classes: dict[str, str] = {}
    for number, line in rows:
        separator = "\t" if "\t" in line or whole_lines else None
        class_id, *name = line.split(separator, 1)
        if class_id in classes:
            raise UserError(f"--classes: {path} names {class_id!r} twice, again in line {number}")
        classes[class_id] = name[0].strip() if name else class_id
    return Classes(list(classes.values()), list(classes))


def _check_folders(classes: Classes, folders: Sequence[str], path: Path) -> None:
    known = set(classes.identities)
    if len(known) < len(classes):
        raise UserError(
            f"--classes: two classes of {path} have one name, and it records no ids; {index.REMEDY}"
        )
    unknown = sorted(set(folders) - known)
    if unknown:
        hint = did_you_mean(unknown[0], classes.identities)
        names = first_few([repr(name) for name in unknown], 3)
        raise UserError(
            f"--classes: the {len(classes)} classes of {path} do not include the class folder(s) "
            f"{names}{hint}"
        )
