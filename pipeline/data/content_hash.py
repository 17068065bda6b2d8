"""A hash of images whose lengths do not identify them, for the fingerprint of their index.

The length of a JPEG or PNG depends on its content; that of a BMP or of a float32 array depends on
its size alone.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

NUM_IMAGES = 1000  # the largest number of images that are read
_NUM_BYTES = 4096  # of each


def is_needed(lengths: np.ndarray) -> bool:
    """Whether at least half of the images, and several, have one and the same length."""
    if len(lengths) == 0:
        return False
    _, counts = np.unique(lengths, return_counts=True)
    return counts.max() > 1 and 2 * counts.max() >= len(lengths)


def content_hash(rows: pa.Table, root: Path, archives: Mapping[str, Path]) -> str | None:
    """A short hash of the first bytes of images; None if one cannot be read.

    Args:
        rows: of an index, at most `NUM_IMAGES`.
        root: folder that the ``file`` column is relative to.
        archives: paths of the files that are archives.
    """
    digest = hashlib.sha256()
    columns = (rows[name].to_pylist() for name in ("file", "offset", "length"))
    try:
        for name, offset, length in zip(*columns, strict=True):
            with archives.get(name, root / name).open("rb", buffering=0) as file:
                file.seek(offset)
                digest.update(file.read(min(length, _NUM_BYTES)))
    except OSError:
        return None
    return digest.hexdigest()[:16]
