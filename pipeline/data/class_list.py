"""The classes of ``--classes``: which classes there are, and in which order."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.data import index
from pipeline.data.classes import Classes
from pipeline.errors import UserError

_PARQUET = b"PAR1"  # a Parquet file's first bytes


def read_class_list(path: Path, folders: Sequence[str] = ()) -> Classes:
    """Read the classes of ``--classes``: a text file with a class a line, or another index.

    A line is a class id, or an id, a tab or a space, and a name. Where a folder of the data is
    named by a whole line with blanks in it, lines without a tab are ids as a whole.

    Args:
        path: the file.
        folders: names of the data's class folders.

    Raises:
        UserError: no such file, no text, no classes, or a class twice.
    """
    if not path.is_file():
        raise UserError(f"--classes: no file {path}; it is a list of class ids, or an index")
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    if is_parquet:
        return index.read(str(path), option="--classes").classes
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


def labels_of(classes: Classes, folders: Sequence[str], source: Path) -> dict[str, int]:
    """Label of each class.

    Args:
        classes: of ``--classes``.
        folders: class folders of the data.
        source: the data, for messages.

    Raises:
        UserError: a folder is not among the classes.
    """
    labels = {class_id: label for label, class_id in enumerate(classes.identities)}
    unknown = sorted(set(folders) - labels.keys())
    if unknown:
        near = get_close_matches(unknown[0], labels, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{source}: the class folder {unknown[0]!r}{more} is not among the {len(labels)} "
            f"classes of --classes{hint}"
        )
    return labels
