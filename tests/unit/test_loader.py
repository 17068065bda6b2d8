"""DALI's batches: right pixels, right order, nothing aliased, bad images named or skipped."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from PIL import Image
from torchvision.transforms import InterpolationMode

from pipeline.config import DataConfig
from pipeline.data import image_headers, index
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Batch, Loader, TrainingLoader
from pipeline.data.mapped_files import Files
from pipeline.data.plan import BatchSpec, training_windows
from pipeline.errors import UserError
from tests.helpers.images import broken_archive, decode, encode, index_tar, picture

CPU = torch.device("cpu")
RAW = DataConfig(mean=[0.0] * 3, std=[1 / 255] * 3)  # pixels as they are, 0..255


def evaluate(
    photos: Index, config: DataConfig, batch_size: int = 16, device: torch.device = CPU
) -> tuple[torch.Tensor, list[Batch]]:
    specs = evaluation_specs(photos, np.arange(len(photos)), config, batch_size)
    batches = list(Loader(photos, specs, config, device, batch_size, threads=2))
    return torch.cat([batch.images for batch in batches]), batches


def pil(photos: Index, row: int) -> Image.Image:
    (view,) = Files(photos).views(np.array([row]))
    return decode(view.tobytes()).convert("RGB")


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


def difference_in_evaluation(
    photos: Index, device: torch.device, interpolation: str = "bilinear"
) -> list[float]:
    config = dataclasses.replace(RAW, interpolation=interpolation)
    got, _ = evaluate(photos, config, device=device)
    differences = []
    how = InterpolationMode(interpolation)
    for row in range(len(photos)):
        resized = transforms.resize(pil(photos, row), 256, interpolation=how)
        wanted = transforms.center_crop(resized, [224, 224])
        differences.append((got[row].cpu() - as_tensor(wanted)).abs().mean().item())
    return differences


def difference_in_training(photos: Index, device: torch.device) -> list[float]:
    rows = np.arange(len(photos))
    windows = training_windows(photos.width, photos.height, 0, 0, 0, RAW)
    loader = Loader(photos, [BatchSpec(rows, windows)], RAW, device, len(rows), threads=2)
    (batch,) = loader
    differences = []
    for row in range(len(photos)):
        top, left = windows.anchor[row].astype(int).tolist()
        height, width = windows.shape[row].astype(int).tolist()
        wanted = transforms.resized_crop(pil(photos, row), top, left, height, width, [224, 224])
        if windows.mirror[row]:
            wanted = transforms.horizontal_flip(wanted)
        differences.append((batch.images[row].cpu() - as_tensor(wanted)).abs().mean().item())
    return differences


def test_agrees_with_torchvision_on_generated_pictures(photos: Index) -> None:
    assert np.mean(difference_in_evaluation(photos, CPU)) < 0.5
    assert np.mean(difference_in_training(photos, CPU)) < 0.5


def test_agrees_with_torchvision_on_photos(ilsvrc_val: Path) -> None:
    photos = index.read(str(ilsvrc_val))
    assert max(difference_in_evaluation(photos, CPU)) < 0.5
    assert max(difference_in_training(photos, CPU)) < 0.5


@pytest.mark.slow
def test_bicubic_agrees_with_torchvision_on_photos(ilsvrc_val: Path) -> None:
    differences = difference_in_evaluation(index.read(str(ilsvrc_val)), CPU, "bicubic")
    assert max(differences) < 0.7, max(differences)
    assert np.mean(differences) < 0.5


@pytest.mark.gpu
def test_gpu_agrees_with_torchvision(photos: Index) -> None:
    device = torch.device("cuda", 0)
    assert np.mean(difference_in_evaluation(photos, device)) < 2
    assert np.mean(difference_in_training(photos, device)) < 2


@pytest.mark.gpu
def test_gpu_half_precision_is_channels_last(photos: Index) -> None:
    config, rows = DataConfig(), np.arange(16)
    specs = evaluation_specs(photos, rows, config, 16)
    half = dataclasses.replace(config, half_input=True)
    (batch,) = Loader(photos, specs, half, torch.device("cuda", 0), 16, threads=2)
    assert batch.images.dtype == torch.float16
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    exact, _ = evaluate(photos, config)
    assert (batch.images.float().cpu() - exact[:16]).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("name", "kind", "mode"),
    [
        ("grey", "JPEG", "L"),
        ("cmyk", "JPEG", "CMYK"),
        ("png", "PNG", "RGB"),
        ("rgba", "PNG", "RGBA"),
    ],
)
def test_whatever_the_file_is_it_decodes_to_rgb(
    tmp_path: Path, name: str, kind: str, mode: str
) -> None:
    source = picture(300, 260).convert(mode)
    options = {"quality": 95} if kind == "JPEG" else {}
    one = index_tar(tmp_path / f"{name}.tar", {"c/x.JPEG": encode(source, kind, **options)})
    assert difference_in_evaluation(one, CPU)[0] < 0.5


def test_labels_rows_and_order(photos: Index) -> None:
    _, batches = evaluate(photos, DataConfig(), batch_size=16)
    assert [len(b.rows) for b in batches] == [16, 16, 8]
    assert np.concatenate([b.rows for b in batches]).tolist() == list(range(40))
    labels = torch.cat([b.labels for b in batches])
    assert labels.tolist() == photos.label.tolist()


def test_batches_stay_as_they_were(photos: Index) -> None:
    config = DataConfig()
    specs = evaluation_specs(photos, np.tile(np.arange(40), 5), config, 8)
    kept, sums = [], []
    for batch in Loader(photos, specs, config, CPU, 8, threads=2):
        kept.append(batch.images)
        sums.append(batch.images.double().sum().item())
    assert len(kept) == 25
    assert [k.double().sum().item() for k in kept] == sums
    assert torch.equal(kept[0], kept[5])  # the same images again


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(0, id="first 0 bytes kept"),
        pytest.param(30, id="first 30 bytes kept"),
        pytest.param(300, id="first 300 bytes kept", marks=pytest.mark.slow),
        pytest.param(700, id="first 700 bytes kept", marks=pytest.mark.slow),
    ],
)
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, keep: int) -> None:
    photos = broken_archive(tmp_path, keep)
    with pytest.raises(UserError, match=r"c/11\.jpg.*--data\.on_error skip"):
        evaluate(photos, DataConfig(), batch_size=4)


def test_images_that_do_not_decode_are_skipped_and_counted(tmp_path: Path) -> None:
    photos = broken_archive(tmp_path)
    config = dataclasses.replace(RAW, on_error="skip")
    rows = np.tile(np.arange(30), 2)  # a second epoch meets them again
    loader = Loader(photos, evaluation_specs(photos, rows, config, 4), config, CPU, 4, threads=2)
    got = list(loader)
    wanted = [row for row in rows.tolist() if row not in (11, 20)]
    assert np.concatenate([b.rows for b in got]).tolist() == wanted
    assert [loader.index.id(row) for row in loader.skipped] == ["c/11.jpg", "c/20.jpg"]
    images = torch.cat([b.images for b in got])
    place = wanted.index(12)
    expected = transforms.center_crop(transforms.resize(pil(photos, 12), 256), [224, 224])
    assert (images[place] - as_tensor(expected)).abs().mean() < 0.5
    assert sum(len(b.labels) for b in got) == len(wanted)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {"exif": b"Exif\0\0" + b"\xff\xd8\xff\xc0" * 500}),
        ("PNG", "RGBA", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_headers_tell_the_size(kind: str, mode: str, options: dict) -> None:
    data = encode(picture(61, 47).convert(mode), kind, **options)
    view = np.frombuffer(data, np.uint8)
    assert image_headers.size(view) == (61, 47)
    assert image_headers.size(view[:9]) is None
    assert image_headers.size(np.zeros(400, np.uint8)) is None


def test_a_png_needs_its_last_chunk() -> None:
    data = encode(picture(61, 47), "PNG")
    size = image_headers.size
    assert size(np.frombuffer(data + b"more", np.uint8)) == (61, 47)
    assert size(np.frombuffer(data[:-300] + b"\0" * 300, np.uint8)) is None
    assert size(np.frombuffer(data[:-300], np.uint8)) is None


def test_pngs_that_are_damaged_behind_their_header_are_skipped(tmp_path: Path) -> None:
    """DALI's reader of headers reads all chunks; where it fails, the process may crash."""
    members = {f"c/{k}.png": encode(picture(60, 50, k), "PNG") for k in range(6)}
    photos = index_tar(tmp_path / "a.tar", members)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    end = int(photos.offset[2] + photos.length[2])
    data[end - 300 : end] = b"\0" * 300
    (tmp_path / "a.tar").write_bytes(data)
    # First without DALI, which would end this process.
    assert image_headers.size(Files(photos).views(np.array([2]))[0]) is None
    _, batches = evaluate(photos, dataclasses.replace(RAW, on_error="skip"), batch_size=6)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 3, 4, 5]]


def test_an_image_of_another_size_than_indexed_is_named(tmp_path: Path) -> None:
    photos = index_tar(tmp_path / "a.tar", {"c/x.JPEG": encode(picture(60, 50), "JPEG")})
    photos = dataclasses.replace(photos, width=photos.width + 1)
    with pytest.raises(UserError, match=r"c/x\.JPEG"):
        evaluate(photos, DataConfig())


@pytest.mark.parametrize("keep", [0, 300])
def test_a_batch_with_no_image_left(tmp_path: Path, keep: int) -> None:
    """It is left out; in training it is an error."""
    photos = broken_archive(tmp_path, keep)
    config = dataclasses.replace(RAW, on_error="skip")
    for rows in ([11, 20, 1, 2], [1, 2, 11, 20], [11, 20]):
        specs = [*evaluation_specs(photos, np.array(rows), config, 2)]
        loader = Loader(photos, specs, config, CPU, 2, threads=2)
        assert [batch.rows.tolist() for batch in loader] == [[1, 2]] * (1 in rows)
        assert loader.skipped == [11, 20]
        with pytest.raises(UserError, match="no image of a batch decodes"):
            list(TrainingLoader(photos, specs, config, CPU, 2, threads=2))


def test_without_memory_no_image_is_blamed(photos: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Loader) -> torch.Tensor:
        raise RuntimeError("[/dali] CUDA allocation failed: cudaErrorMemoryAllocation")

    monkeypatch.setattr(Loader, "_run", fail)
    monkeypatch.setattr(Loader, "_decodes", lambda *_: pytest.fail("an image was tried"))
    config = DataConfig()
    specs = evaluation_specs(photos, np.arange(4), config, 4)
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        list(Loader(photos, specs, config, CPU, 4, threads=2))


def test_wait_for_data_is_measured(photos: Index) -> None:
    config = DataConfig()
    specs = evaluation_specs(photos, np.arange(40), config, 8)
    loader = Loader(photos, specs, config, CPU, 8, threads=2)
    assert loader.wait_seconds == 0
    iterator: Iterator[Batch] = iter(loader)
    next(iterator)
    first = loader.wait_seconds
    assert first > 0
    list(iterator)
    assert loader.wait_seconds > first
