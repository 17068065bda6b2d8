"""Valid files, which the cases of tests/unit/mistakes damage."""

import io
import pickle
import struct
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers import images
from tests.unit.mistakes.case import FINETUNE, call

Damage = Callable[[bytes], bytes]
Tree = dict[str, bytes]  # a folder's files by their relative path

NET = (
    *(
        "--model.name",
        "tests.helpers.nets:dropout_mlp",
        "--data.crop_size",
        28,
        "--data.resize_size",
        28,
    ),
    *("--data.channels", 1, "--data.mean", "[0.5]", "--data.std", "[0.5]"),
)
TRAINING = (
    *("--train.epochs", 1, "--train.batch_size", 4, "--train.pretrain_epochs", 0),
    *("--evaluation.num_images", 4),
)


def empty(_: bytes) -> bytes:
    return b""


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbage(data: bytes) -> bytes:
    return np.random.default_rng(0).bytes(min(len(data), 5000))


def zeros_in_the_middle(data: bytes) -> bytes:
    begin = len(data) // 2
    return data[:begin] + bytes(100) + data[begin + 100 :]


def replaced(old: bytes, new: bytes) -> Damage:
    """Replace the first occurrence, which must exist."""

    def damage(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return damage


def damage_file(path: Path, damage: Damage) -> Path:
    path.write_bytes(damage(path.read_bytes()))
    return path


def read_tree(folder: Path) -> Tree:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write_tree(tree: Tree, folder: Path) -> Path:
    for name, data in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@cache
def jpeg(width: int = 40, height: int = 40) -> bytes:
    return images.encode(images.picture(width, height).convert("L"), "JPEG", quality=95)


def index(folder: Path) -> Path:
    """Eight JPEG files of two classes in photos.tar; the path of photos.parquet."""
    members = {f"{'ab'[k % 2]}/{k}.jpg": jpeg() for k in range(8)}
    images.index_tar(folder / "photos.tar", members)
    return folder / "photos.parquet"


@cache
def run() -> Tree:
    """A finished run of finetune.py on `index`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = index(folder)
        ended = call(FINETUNE, *run_options(path), "--output", folder / "run")
        assert ended.code == 0, ended.stderr
        return read_tree(folder / "run")


def run_options(path: Path) -> tuple[object, ...]:
    return (*NET, *TRAINING, "--data.train", path, "--data.val", path)


@cache
def weights() -> bytes:
    """Weights of the net of the embedded demonstration."""
    from pipeline.models.paper_nets import mlp

    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(mlp(10).state_dict(), file)
    return file.getvalue()


@cache
def evaluation() -> Tree:
    """A finished run of evaluate.py."""
    from tests.integration.test_report import evaluation

    with tempfile.TemporaryDirectory() as place:
        return read_tree(evaluation(Path(place) / "run", 1.0))


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar10(**changes: Any) -> bytes:
    """A batch of two images."""
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [4, 9]}
    batch |= {name.encode(): value for name, value in changes.items()}
    return pickle.dumps({k: v for k, v in batch.items() if v is not None}, protocol=2)


def code(path: Path) -> bytes:
    """A pickle that makes a file when it is loaded."""

    class Code:
        def __reduce__(self) -> tuple:
            return (exec, (f"open({str(path)!r}, 'w')",))

    return pickle.dumps({b"data": Code(), b"labels": [1]}, protocol=2)


def development_kit(*names: str) -> bytes:
    """A tar.gz with small files of these names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 20
            archive.addfile(info, io.BytesIO(b"1\n" * 10))
    return file.getvalue()
