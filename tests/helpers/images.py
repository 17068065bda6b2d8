"""Generated pictures, as bytes and in tars."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data import index, scan
from pipeline.data.index import Index
from pipeline.data.tar_members import append_member


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth colour picture, as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar, compressed if its name ends with .gz."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            append_member(archive, name, data)
    return path


def index_tar(path: Path, members: dict[str, bytes]) -> Index:
    """Write a tar of ``class/name`` members and its index beside it."""
    write_tar(path, members)
    rows, classes = scan.scan_tar(path)
    target = path.with_suffix(".parquet")
    index.write(target, rows.table(), path.parent, classes, {path.name: path})
    return index.read(str(target))
