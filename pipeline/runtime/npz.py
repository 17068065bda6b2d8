"""Reading .npz files, without unpickling objects."""

from pathlib import Path

import numpy as np

from pipeline.errors import UserError, first_line


def read_npz(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of a file, by name.

    Args:
        path: the file.
        remedy: what the user can do, for the message.

    Raises:
        UserError: the file is missing, damaged, or not an .npz file.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("not an .npz file")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged files raise errors of many types
        raise UserError(f"{path} cannot be read as .npz ({first_line(error)}); {remedy}") from None
