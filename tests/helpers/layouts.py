"""The miniature ILSVRC in the layouts in which others distribute it."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline.data import ilsvrc
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.data.tar_members import append_member

SYNSETS = "LOC_synset_mapping.txt"


class Miniature(NamedTuple):
    """The miniature ILSVRC as its archives are indexed."""

    train: Index
    val: Index
    kit: ilsvrc.DevelopmentKit


def encoded_images(photos: Index) -> dict[str, bytes]:
    """The bytes of each image, by its id."""
    views = Files(photos).views(np.arange(len(photos)))
    return {photos.id(row): view.tobytes() for row, view in enumerate(views)}


def labels_of(photos: Index) -> dict[str, int]:
    return {photos.id(row): int(photos.label[row]) for row in range(len(photos))}


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_synsets(folder: Path, kit: ilsvrc.DevelopmentKit, step: int = 1) -> Path:
    """LOC_synset_mapping.txt of all 1,000 classes; with ``step`` -1 not in the order of labels."""
    lines = [f"{wnid} {name}, other" for wnid, name in zip(kit.wnids, kit.names, strict=True)]
    path = folder / SYNSETS
    path.write_text("\n".join(lines[::step]))
    return path


def write_kaggle(folder: Path, miniature: Miniature) -> None:
    """Kaggle's tree, unpacked, without LOC_synset_mapping.txt."""
    images = folder / "ILSVRC" / "Data" / "CLS-LOC"
    write_files(images / "train", encoded_images(miniature.train))
    write_files(images / "val", encoded_images(miniature.val))
    wnids = miniature.kit.wnids
    rows = [
        f"{Path(name).stem},{wnids[label]} 1 2 3 4 {wnids[0]} 5 6 7 8 "
        for name, label in reversed(labels_of(miniature.val).items())
    ]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))


def write_shard(path: Path, photos: Mapping[str, bytes], labels: Mapping[str, int]) -> None:
    """A WebDataset shard of KEY.jpg, KEY.cls and KEY.json, as of timm/imagenet-1k-wds."""
    with tarfile.open(path, "w") as archive:
        for name, content in photos.items():
            key = PurePosixPath(name).stem
            values = {"label": labels[name], "filename": name}
            append_member(archive, f"{key}.cls", f"{labels[name]}".encode())
            append_member(archive, f"{key}.jpg", content)
            append_member(archive, f"{key}.json", json.dumps(values).encode())


def write_class_folders(folder: Path, photos: Index, kit: ilsvrc.DevelopmentKit) -> None:
    """A folder for each of the 1,000 classes, most of them empty."""
    labels = labels_of(photos)
    files = {
        f"{kit.wnids[labels[name]]}/{PurePosixPath(name).name}": content
        for name, content in encoded_images(photos).items()
    }
    for wnid in kit.wnids:
        (folder / wnid).mkdir(parents=True)
    write_files(folder, files)
