"""Conversion of data sets that come as arrays to tars of PNGs, which the loader can read.

Out: a tar with one folder per class, for `pipeline.data.scan.scan_tar`. The same input gives the
same bytes on any machine.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.tar_members import append_member
from pipeline.errors import UserError, first_line
from pipeline.runtime.files import atomic_write

_IDX_UINT8 = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file (MNIST's format) of unsigned bytes, gzipped or not, of any shape."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        zero, kind, dimensions = struct.unpack(">HBB", data[:4])
        if zero != 0 or kind != _IDX_UINT8:
            raise ValueError("not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} cannot be read as IDX: {first_line(error)}") from None


class _ArraysOnly(pickle.Unpickler):
    """Reads CIFAR-10's pickles: only arrays, since other objects could run code."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file of CIFAR-10's python version.

    Returns:
        images (N, 32, 32, 3) uint8, and labels (N,) int64 from 0 to 9.

    Raises:
        UserError: the file is missing, damaged, or not a batch of CIFAR-10.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[b"labels"])
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except Exception as error:  # a damaged pickle raises errors of any type
        raise UserError(f"{path} cannot be read as a CIFAR-10 batch: {first_line(error)}") from None
    problem = _cifar10_problem(images, labels)
    if problem:
        raise UserError(f"{path} cannot be read as a CIFAR-10 batch: {problem}")
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def _cifar10_problem(images: Any, labels: np.ndarray) -> str:
    """The first problem of a batch's content; empty if there is none."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return "its data are not bytes"
    if images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        return f"its data have the shape {images.shape}, not (N, 3072)"
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        return f"its labels are not {len(images)} whole numbers"
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        return "its labels are not from 0 to 9"
    return ""


def write_tar(
    path: Path,
    images: Iterable[np.ndarray],
    labels: Iterable[int],
    class_names: list[str],
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write images as ``class/number.png`` members of a tar, atomically.

    Args:
        path: the tar to write.
        images: (H, W) grey or (H, W, 3) RGB uint8 arrays.
        labels: one for each image.
        class_names: folder names in the order of the labels.
        progress: called with the number of images written so far.

    Returns:
        The number of images written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    empty = set(range(len(class_names)))
    with atomic_write(path) as partial, tarfile.open(partial, "w") as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True), 1):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            append_member(archive, f"{class_names[label]}/{number - 1:06d}.png", png.getvalue())
            empty.discard(label)
            progress(number)
        for label in sorted(empty):  # an empty folder keeps the labels of the others unchanged
            folder = tarfile.TarInfo(class_names[label])
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
    return number
