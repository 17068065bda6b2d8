"""Parts of an export: timm's crop_pct, and the preprocessing of model.onnx."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporting.images import images_for_check
from exporting.net_files import crop_pct
from exporting.onnx_file import reference_input
from exporting.onnx_preprocessing import preprocessing_graph
from pipeline.config import DataConfig, EvaluateConfig
from tests.helpers.images import encode, index_tar, picture

SIZES = [(300, 200), (224, 400), (481, 333), (64, 64), (33, 900), (90, 71)]  # width, height
CASES = [
    {"crop_size": 32, "resize_size": 32},
    {"crop_size": 31, "resize_size": 44, "interpolation": "bicubic"},
    {"crop_size": 224, "resize_size": 256},
]


def test_timm_resizes_to_the_same_size() -> None:
    for resize_size in range(1, 600):
        for crop_size in range(1, resize_size + 1, 7):
            assert math.floor(crop_size / crop_pct(crop_size, resize_size)) == resize_size


@pytest.mark.parametrize("options", CASES)
def test_preprocessing_in_onnx(options: dict[str, Any]) -> None:
    """The graph agrees with torchvision for images that are enlarged and reduced, of even and odd
    margins."""
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra export")
    data = DataConfig(**options)
    session = onnxruntime.InferenceSession(preprocessing_graph(data).SerializeToString())
    for number, (width, height) in enumerate(SIZES):
        image = np.asarray(picture(width, height, number))
        (pixels,) = session.run(None, {"images": image[None]})
        expected = reference_input(image, data).numpy()
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=2e-5)


def test_images_that_cannot_be_read_are_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = index_tar(tmp_path / "photos.tar", {"c/0.jpg": encode(picture(9, 8), "JPEG")})
    archive = tmp_path / "photos.tar"
    archive.write_bytes(bytes(archive.stat().st_size))
    config = EvaluateConfig(data=DataConfig(val=good.path))
    images = images_for_check(config)
    assert len(images) == 10
    assert {image.shape[2] for image in images} == {3}
    assert "checked with generated images" in capsys.readouterr().out
