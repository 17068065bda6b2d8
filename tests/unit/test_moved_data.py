"""data.root: images that have moved since they were indexed."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataConfig, FinetuneConfig
from pipeline.data import index, scan
from pipeline.data.mapped_files import Files
from pipeline.data.source import open_index
from pipeline.errors import UserError
from tests.helpers.images import encode, picture


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A folder with other images of equal names in train and val, indexed before it moved."""
    for number, part in enumerate(("train", "val")):
        folder = tmp_path / "old" / part
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            (folder / name / "1.png").write_bytes(encode(picture(30, 20, number), "PNG"))
        rows, classes = scan.scan_folder(folder)
        index.write(tmp_path / f"{part}.parquet", rows.table(), folder, classes)
    return (tmp_path / "old").rename(tmp_path / "new")


def config_of(moved: Path, root: Path) -> FinetuneConfig:
    train, val = (str(moved.parent / f"{part}.parquet") for part in ("train", "val"))
    return FinetuneConfig(data=DataConfig(train=train, val=val, root=str(root)))


def test_parts_in_two_folders(moved: Path) -> None:
    config = config_of(moved, moved)
    for number, part in enumerate(("train", "val")):
        images = open_index(config, part)
        assert images.root == moved / part
        (view,) = Files(images).views(np.array([0]))
        assert view.tobytes() == encode(picture(30, 20, number), "PNG")


def test_one_part(moved: Path) -> None:
    assert open_index(config_of(moved, moved / "val"), "val").root == moved / "val"


def test_no_such_folder(moved: Path) -> None:
    images = open_index(config_of(moved, moved / "x"), "val")
    with pytest.raises(UserError, match=r"no file .*/new/x/a/1\.png, listed in .*--data\.root"):
        Files(images).views(np.array([0]))
