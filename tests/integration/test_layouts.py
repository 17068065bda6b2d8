"""Other layouts of the same photos give the pixels and the labels of ILSVRC's archives."""

import json
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from pipeline.config import DataConfig
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.tar_members import append_member
from tests.helpers.in_process import call, in_process, succeed
from tests.helpers.layouts import (
    Miniature,
    encoded_images,
    labels_of,
    write_files,
    write_kaggle,
    write_synsets,
)
from tests.helpers.parquet import UNCOMPRESSED, write_parquet

RAW = DataConfig(mean=[0.0] * 3, std=[1 / 255] * 3, crop_size=96, resize_size=112)
INDEX = "tools/index.py"


@pytest.fixture
def synsets(miniature: Miniature, tmp_path: Path) -> Path:
    """LOC_synset_mapping.txt of all 1,000 classes, in an order that is not the labels'."""
    return write_synsets(tmp_path, miniature.kit, step=-1)


def pixels_of(photos: Index) -> dict[str, torch.Tensor]:
    """The decoded pixels of each image, by its id, as a run gets them."""
    specs = evaluation_specs(photos, np.arange(len(photos)), RAW, 50)
    loader = Loader(photos, specs, RAW, torch.device("cpu"), 50, threads=2)
    return {
        photos.id(row): image.clone()
        for batch in loader
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
    }


def assert_same_images(photos: Index, expected: Index, original: dict[str, str]) -> None:
    """The same labels and pixels, where ``original`` states the expected index's id of each id."""
    assert sorted(original.values()) == sorted(labels_of(expected))
    assert {original[name]: k for name, k in labels_of(photos).items()} == labels_of(expected)
    expected_pixels = pixels_of(expected)
    pixels = {original[name]: image for name, image in pixels_of(photos).items()}
    assert pixels.keys() == expected_pixels.keys()
    for name, image in pixels.items():
        assert torch.equal(image, expected_pixels[name]), name


def test_kaggles_tree(miniature: Miniature, synsets: Path, tmp_path: Path) -> None:
    write_kaggle(tmp_path, miniature)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    argv = (INDEX, "kaggle", tmp_path, "--out", tmp_path / "out")
    refused = call(*argv)
    assert "train: 350 images, ILSVRC-2012 has 1,281,167" in refused.stderr
    assert not (tmp_path / "out").exists()
    output = succeed(*argv, "--partial")
    assert "train.parquet: 350 images of 1,000 classes" in output
    assert "val.parquet: 150 images of 1,000 classes" in output
    paths = [tmp_path / "out" / f"{name}.parquet" for name in ("train", "val")]
    use = f"use it: --data.train {paths[0]} --data.val {paths[1]}"
    assert output.splitlines()[-1] == use
    for name, expected in (("train", miniature.train), ("val", miniature.val)):
        photos = index.read(str(tmp_path / "out" / f"{name}.parquet"))
        assert photos.classes == expected.classes
        assert_same_images(photos, expected, {name: name for name in labels_of(photos)})
    after = {path for path in tmp_path.rglob("*") if path.is_file()} - before.keys()
    assert after == {tmp_path / "out" / "train.parquet", tmp_path / "out" / "val.parquet"}


def write_shards(folder: Path, images: dict[str, bytes], labels: dict[str, int]) -> dict[str, str]:
    """Three shards of photos; the original id of each id in their index."""
    names, original = list(images), {}
    for shard, start in ((2, 0), (10, 100), (100, 200)):
        stem = f"imagenet1k-train-{shard}"
        with tarfile.open(folder / f"{stem}.tar", "w") as archive:
            for name in names[start : start + 100 if shard < 100 else None]:
                key = PurePosixPath(name).stem
                kind = "PNG" if images[name].startswith(b"\x89PNG") else "JPEG"
                ending = "png" if kind == "PNG" else ("jpg", "JPEG")[shard == 2]
                values = {"label": labels[name], "filename": name}
                if shard == 10:  # the order of the members and the kind of label may differ
                    append_member(archive, f"./{key}.{ending}", images[name])
                    append_member(archive, f"./{key}.json", json.dumps(values).encode())
                else:
                    append_member(archive, f"{key}.cls", f"{labels[name]}\n".encode())
                    append_member(archive, f"{key}.json", b'{"label": -1}')
                    append_member(archive, f"{key}.{ending}", images[name])
                original[f"{stem}/{key}"] = name
    return original


def test_webdataset_shards(miniature: Miniature, synsets: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    labels = labels_of(miniature.train)
    original = write_shards(tmp_path / "store", encoded_images(miniature.train), labels)
    (tmp_path / "shards").mkdir()
    for path in sorted((tmp_path / "store").iterdir()):  # as a download's cache: links to blobs
        blob = path.rename(path.with_name(f"blob{path.stat().st_size}"))
        (tmp_path / "shards" / path.name).symlink_to(blob)
    lines = [f"{wnid} x" for wnid in miniature.kit.wnids]
    synsets.write_text("\n".join(lines))
    pattern, out = tmp_path / "shards" / "imagenet1k-train-*.tar", tmp_path / "out.parquet"
    argv = (INDEX, "webdataset", pattern, "--out", out)
    assert "350 images of 1,000 classes" in succeed(*argv, "--classes", synsets)
    photos = index.read(str(out))
    assert photos.classes.ids == miniature.train.classes.ids
    assert photos.files == [f"imagenet1k-train-{k}.tar" for k in (2, 10, 100)]
    assert photos.root == tmp_path / "shards"
    assert [photos.id(row) for row in range(len(photos))] == list(original)
    assert_same_images(photos, miniature.train, original)
    num_classes = max(labels.values()) + 1
    assert f"350 images of {num_classes} classes" in succeed(*argv)
    assert index.read(str(out)).classes.ids == [str(k) for k in range(num_classes)]


def write_shards_of_parquet(
    folder: Path, photos: Index, names: list[str], **options: Any
) -> dict[str, str]:
    """Three Parquet files as on the Hugging Face hub; the original id of each id in their index."""
    folder.mkdir()
    images, labels = list(encoded_images(photos).items()), labels_of(photos)
    original = {}
    for number, start in enumerate(range(0, len(images), len(images) // 3 + 1)):
        part = images[start : start + len(images) // 3 + 1]
        paths = {name: PurePosixPath(name).name for name, _ in part}
        write_parquet(
            folder / f"train-{number:05d}-of-00003.parquet",
            [(content, paths[name]) for name, content in part],
            [labels[name] for name, _ in part],
            names,
            row_group_size=40,
            **options,
        )
        original |= {path: name for name, path in paths.items()}
    return original


def logits_of(photos: Index, weights: Path) -> torch.Tensor:
    """The logits of the first 16 photos, (16, 1000)."""
    net = squeezenet1_1()
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.eval()
    specs = evaluation_specs(photos, np.arange(16), DataConfig(), 8)
    loader = Loader(photos, specs, DataConfig(), torch.device("cpu"), 8, threads=2)
    with torch.no_grad():
        return torch.cat([net(batch.images) for batch in loader])


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_parquet_files(
    miniature: Miniature,
    synsets: Path,
    squeezenet_weights: Path,
    compression: str,
    tmp_path: Path,
) -> None:
    kit, out = miniature.kit, tmp_path / "out.parquet"
    names = [f"{name}, {wnid} as English" for wnid, name in zip(kit.wnids, kit.names, strict=True)]
    options = UNCOMPRESSED if compression == "none" else {}
    argv = (INDEX, "parquet", tmp_path / "train/train-*.parquet", "--out", out)
    original = write_shards_of_parquet(tmp_path / "train", miniature.train, names, **options)
    if compression == "snappy":
        refused = call(*argv)
        assert re.search(r"00000-of-00003\.parquet: .* SNAPPY, .*--repack DIR", refused.stderr)
        argv = (*argv, "--repack", tmp_path / "copies")
    output = in_process(*argv)
    assert "350 images of 1,000 classes" in output.stdout
    assert "--classes LOC_synset_mapping.txt gives them WordNet ids" in output.stderr
    photos = index.read(str(out))
    assert photos.classes.ids == names
    assert photos.root == tmp_path / ("train" if compression == "none" else "copies")
    assert [photos.id(row) for row in range(len(photos))] == list(original)
    assert_same_images(photos, miniature.train, original)
    counts = np.bincount(photos.label, minlength=1000)
    assert (counts == np.bincount(miniature.train.label, minlength=1000)).all()
    assert (counts == 0).any()
    refused = call(*argv, "--classes", synsets)
    assert "'toilet tissue' is label 0 of the list and label 999 of" in refused.stderr
    synsets.write_text("\n".join(sorted(synsets.read_text().splitlines())))
    assert "350 images of 1,000 classes" in succeed(*argv, "--classes", synsets)
    photos = index.read(str(out))
    assert photos.classes.ids == miniature.train.classes.ids
    assert torch.equal(
        logits_of(photos, squeezenet_weights), logits_of(miniature.train, squeezenet_weights)
    )


def test_a_flat_folder_with_labels(miniature: Miniature, synsets: Path, tmp_path: Path) -> None:
    folder, file, out = tmp_path / "val", tmp_path / "val.txt", tmp_path / "out.parquet"
    write_files(folder, encoded_images(miniature.val))
    (folder / "notes.txt").write_text("not an image")
    wnids = miniature.kit.wnids
    synsets.write_text("\n".join(wnids))
    argv = (INDEX, "folder", folder, "--labels", file, "--out", out)
    labels = labels_of(miniature.val)
    expected = {name: name for name in labels}
    # WordNet ids beside names without endings, and numbers beside names with them.
    file.write_text("\n".join(f"{Path(name).stem} {wnids[k]}" for name, k in labels.items()))
    succeed(*argv, "--classes", synsets)
    photos = index.read(str(out))
    assert photos.classes.ids == wnids
    assert_same_images(photos, miniature.val, expected)
    file.write_text("".join(f"{name}\t{k}\n" for name, k in labels.items()))
    succeed(*argv, "--classes", synsets)
    photos = index.read(str(out))
    assert (photos.classes.ids, labels_of(photos)) == (wnids, labels)
    succeed(*argv)
    photos = index.read(str(out))
    assert labels_of(photos) == labels
    assert photos.classes.ids == [str(k) for k in range(max(labels.values()) + 1)]
