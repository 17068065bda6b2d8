"""tools/index.py show: counts and a contact sheet of training crops."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import DataConfig, TrainConfig
from pipeline.data import index, scan
from pipeline.data.batches import TrainingPlan
from pipeline.data.classes import Classes
from pipeline.data.index import Index
from pipeline.data.index_summary import summary_lines
from pipeline.data.loader import Loader
from tests.helpers.images import encode, index_tar, picture, write_tar
from tests.helpers.in_process import call, succeed

INDEX = "tools/index.py"
SIDE, STRIP, MARGIN = 100, 14, 4  # pixels of a cell


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Seven images of two classes in a tar; a third class has none."""
    folder = tmp_path_factory.mktemp("uneven")
    members = {f"a/{k}.jpg": encode(picture(100 + 10 * k, 50), "JPEG") for k in range(5)}
    members |= {f"b, c/{k}.png": encode(picture(20, 30).convert("L"), "PNG") for k in range(2)}
    archive = write_tar(folder / "x.tar", members)
    names = ["a", "b, c", "d"]
    rows, _ = scan.scan_tar(archive, read_classes=lambda _: Classes(names, names))
    index.write(
        folder / "i.parquet", rows.table(), folder, Classes(names, names), {"x.tar": archive}
    )
    return index.read(str(folder / "i.parquet"))


def test_an_index_of_an_archive(uneven: Index) -> None:
    size = int(uneven.length.sum())
    assert summary_lines(uneven) == [
        f"{uneven.path}: 7 images of 3 classes, {size / 1000:.4g} kB; files in {uneven.root}",
        "images by class: smallest 2 (b, c), median 3.5, largest 5 (a)",
        "classes without images: 1: 'd'",
        "formats: 5 JPEG RGB, 2 PNG L",
        "width in pixels: smallest 20, 5 % 20, median 110, 95 % 140, largest 140",
        "height in pixels: smallest 30, 5 % 30, median 50, 95 % 50, largest 50",
        "archives: 1",
        f"  x.tar: 7 images, {size / 1000:.4g} kB",
    ]


def test_an_index_of_a_folder(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        picture(9, 8).save(tmp_path / "root" / name)
    succeed(INDEX, "folder", tmp_path / "root", "--out", tmp_path / "i.parquet")
    output = succeed(INDEX, "show", tmp_path / "i.parquet")
    assert output.splitlines()[-1] == "files of one image each: 2"
    assert "classes without images" not in output


def test_counts_as_csv(uneven: Index, tmp_path: Path) -> None:
    succeed(INDEX, "show", uneven.path, "--csv", tmp_path / "counts.csv")
    with (tmp_path / "counts.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["label", "id", "name", "images"],
            ["0", "a", "a", "5"],
            ["1", "b, c", "b, c", "2"],
            ["2", "d", "d", "0"],
        ]


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    path = Path(index_tar(archive, {"a/0.png": encode(picture(20, 30), "PNG")}).path)
    (tmp_path / "link.png").symlink_to(path)
    before = path.read_bytes(), archive.read_bytes()
    for option, output in (("csv", path), ("csv", archive), ("sheet", tmp_path / "link.png")):
        ended = call(INDEX, "show", path, f"--{option}", output)
        assert ended.code == 2
        assert f"which this command reads; give another --{option}" in ended.stderr
    assert (path.read_bytes(), archive.read_bytes()) == before


def cells(sheet: Path, number: int) -> list[np.ndarray]:
    """The images of a contact sheet, (S, S, 3) uint8."""
    pixels = np.asarray(Image.open(sheet))
    columns = pixels.shape[1] // (SIDE + MARGIN)
    corners = [divmod(k, columns) for k in range(number)]
    return [
        pixels[y * (SIDE + STRIP + MARGIN) :, x * (SIDE + MARGIN) :][:SIDE, :SIDE]
        for y, x in corners
    ]


def test_the_sheet_shows_what_a_run_gets(photos: Index, tmp_path: Path) -> None:
    """The first batch of a run, whose normalisation is undone; the config file has a mean image."""
    np.save(tmp_path / "mean.npy", np.full((3, SIDE, SIDE), 0.25, np.float32))
    data = f"crop_size: {SIDE}, resize_size: 120, std: [0.5, 0.5, 0.5], crop_scale: [0.3, 1]"
    (tmp_path / "run.yaml").write_text(f"data: {{{data}, mean: {tmp_path / 'mean.npy'}}}")
    sheet, options = tmp_path / "s.png", ("--config", tmp_path / "run.yaml", "--seed", 7)
    more = ("--num", 34, "--data.interpolation", "bicubic")
    output = succeed(INDEX, "show", photos.path, "--sheet", sheet, *options, *more)
    assert f"s.png: the first 34 training crops of a run with train.seed 7, {SIDE} x" in output
    config = DataConfig(
        crop_size=SIDE,
        resize_size=120,
        mean=str(tmp_path / "mean.npy"),
        std=[0.5] * 3,
        crop_scale=[0.3, 1],
        interpolation="bicubic",
    )
    plan = TrainingPlan(photos, config, TrainConfig(seed=7, batch_size=34), rank=0, size=1)
    loader = Loader(photos, plan.specs(0, 1), config, torch.device("cpu"), 34, threads=2)
    (batch,) = loader
    expected = (255 * (0.5 * batch.images + 0.25)).permute(0, 2, 3, 1).numpy()
    shown = cells(sheet, 34)
    assert len({cell.tobytes() for cell in shown}) == 34
    for cell, image in zip(shown, expected, strict=True):
        assert np.abs(cell - image).max() < 0.51


def test_captions_and_grey_crops(uneven: Index, tmp_path: Path) -> None:
    """Small crops are enlarged, so that the ids of the classes fit below them."""
    demo = Path(__file__).parents[2] / "configs" / "demo.yaml"
    sheet = tmp_path / "s.png"
    output = succeed(INDEX, "show", uneven.path, "--sheet", sheet, "--config", demo)
    assert "the first 7 training crops of a run with train.seed 0, 28 x 28 pixels" in output
    pixels = np.asarray(Image.open(sheet))
    side = 4 * 28
    assert pixels.shape == (3 * (side + STRIP + MARGIN), 3 * (side + MARGIN), 3)
    assert (pixels[:side:4, :side:4] == pixels[3:side:4, 3:side:4]).all()
    assert (pixels[side : side + STRIP] < 100).any()  # black letters
    assert (pixels[-side:, -side - MARGIN :] == 255).all()  # seven of nine cells are used
