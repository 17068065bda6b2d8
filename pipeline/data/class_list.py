"""Lists of classes in the order of their labels, from files such as that of ``--classes``."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.text import did_you_mean
from pipeline.data import index
from pipeline.data.classes import Classes
from pipeline.errors import UserError, first_few

_PARQUET = b"PAR1"  # a Parquet file's first bytes
_MAX_NUMBERED = 1_000_000  # classes without a list; a larger number is a mistake


def numbered_classes(largest: int, source: Path) -> Classes:
    """The classes 0 to ``largest``, whose ids are these numbers.

    Raises:
        UserError: there are more than a million.
    """
    if largest >= _MAX_NUMBERED:
        raise UserError(
            f"{source}: the class number {largest} is not below {_MAX_NUMBERED:,}; list the "
            "classes with --classes"
        )
    ids = [str(number) for number in range(largest + 1)]
    return Classes(ids, ids)


def read_class_list(path: Path, folders: Sequence[str] = (), option: str = "--classes") -> Classes:
    """Read a list of classes: a text file with one class per line, or an index.

    Args:
        path: the file.
        folders: names of the data's class folders.
        option: the option or command that needs the file, for messages.

    Raises:
        UserError: the file is missing, not text or empty, lists a class twice, or lacks the class
            of a folder.
    """
    if not path.is_file():
        raise UserError(f"{option}: no file {path}; it is a list of class ids, or an index")
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    if is_parquet:
        classes = index.read(str(path), option=option).classes
    else:
        classes = _read_text(path, folders, option)
    _check_folders(classes, folders, option, path)
    return classes


def _read_text(path: Path, folders: Sequence[str], option: str) -> Classes:
    """Read one class per line.

    A line is a class id, or an id, a tab or a space, and a name. If a line with spaces equals a
    folder's name, then every line without a tab is an id, spaces included.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{option}: {path} cannot be read as text ({error}); give one class id per line, or "
            "an index (.parquet)"
        ) from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{option}: {path} is empty; give one class id per line")
    with_spaces = {folder for folder in folders if " " in folder}
    whole_lines = any(line in with_spaces for _, line in rows)
    classes: dict[str, str] = {}
    for number, line in rows:
        separator = "\t" if "\t" in line or whole_lines else None
        class_id, *name = line.split(separator, 1)
        if class_id in classes:
            raise UserError(f"{option}: {path} lists {class_id!r} twice, again in line {number}")
        classes[class_id] = name[0].strip() if name else class_id
    return Classes(list(classes.values()), list(classes))


def _check_folders(classes: Classes, folders: Sequence[str], option: str, path: Path) -> None:
    identities = set(classes.identities)
    if len(identities) < len(classes):
        raise UserError(
            f"{option}: two classes of {path} have the same name, and it has no class ids; "
            f"{index.REMEDY}"
        )
    unknown = sorted(set(folders) - identities)
    if unknown:
        hint = did_you_mean(unknown[0], classes.identities)
        names = first_few([repr(name) for name in unknown], 3)
        raise UserError(
            f"{option}: the {len(classes)} classes of {path} do not include the class folder(s) "
            f"{names}{hint}"
        )
