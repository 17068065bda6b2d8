"""model.onnx: a net with its preprocessing inside, checked against torch.

The input ``images`` is (N, H, W, channels) uint8: decoded images of one size, of any N, H and W.
The output ``logits`` is (N, K) float32. The graph resizes the shorter side, takes the centre square
and normalises. It does not round pixels to whole numbers after resizing, as decoders' libraries do.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from exporting.onnx_preprocessing import OPSET, onnx_package, preprocessing_graph
from exporting.source import ExportedNet
from pipeline.config import DataConfig
from pipeline.data.mean_image import mean_of
from pipeline.errors import UserError, first_line
from pipeline.runtime.files import atomic_write

ONNX = "model.onnx"
TOLERANCE = 1e-4  # of a logit, relative to the largest logit of its image if that exceeds 1


@dataclass(frozen=True)
class OnnxCheck:
    """How a file agrees with torch."""

    num_images: int
    difference: float  # the largest of a logit, relative as `TOLERANCE`


def write_onnx(exported: ExportedNet, images: list[np.ndarray], folder: Path) -> OnnxCheck:
    """Write model.onnx.

    Args:
        exported: the net.
        images: the images to check the file with, each (H, W, channels) uint8, of any sizes.
        folder: the export.

    Raises:
        UserError: a package is missing, the net cannot be exported, or the file disagrees with
            torch by more than `TOLERANCE`.
    """
    model = _merged(preprocessing_graph(exported.data), _net_graph(exported))
    check = OnnxCheck(len(images), _difference(model, exported, images))
    if not check.difference <= TOLERANCE:  # also for NaN
        raise UserError(
            f"{ONNX}: its logits differ from torch's by {check.difference:.1g}, more than "
            f"{TOLERANCE:g}; leave out --onnx"
        )
    with atomic_write(folder / ONNX) as partial:
        partial.write_bytes(model.SerializeToString())
    return check


def reference_input(image: np.ndarray, data: DataConfig) -> Tensor:
    """The net's input by torchvision: (1, C, S, S) float32.

    Args:
        image: (H, W, C) uint8.
        data: the preprocessing.
    """
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    mode = InterpolationMode(data.interpolation)
    resized = transforms.resize(pixels, [data.resize_size], interpolation=mode, antialias=True)
    cropped = transforms.center_crop(resized, [data.crop_size, data.crop_size])
    mean = torch.from_numpy(mean_of(data)).float()
    return (cropped - mean) / torch.tensor(data.std)[:, None, None]


def _difference(model: Any, exported: ExportedNet, images: list[np.ndarray]) -> float:
    """The largest difference between the logits of a file and of torch."""
    runtime = onnx_package("onnxruntime")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    largest = 0.0
    for image in images:
        with torch.no_grad():
            expected = exported.net(reference_input(image, exported.data)).numpy()
        (logits,) = session.run(None, {"images": image[None]})
        if not np.isfinite(logits).all():
            return math.inf
        scale = max(1.0, float(np.abs(expected).max()))
        largest = max(largest, float(np.abs(logits - expected).max()) / scale)
    return largest


def _net_graph(exported: ExportedNet) -> Any:
    """The net from normalised images to logits."""
    for name in ("onnx", "onnxscript"):
        onnx_package(name)
    side = exported.data.crop_size
    example = torch.zeros(2, exported.data.channels, side, side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own future
            program = torch.onnx.export(
                exported.net,
                (example,),
                input_names=["normalised"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    # The exporter raises errors of many kinds, its own and those of torch.export.
    except Exception as error:
        raise UserError(
            f"{ONNX}: torch cannot export {exported.model.name} ({first_line(error)}); leave out "
            "--onnx"
        ) from None
    assert program is not None, "with dynamo, a program"
    return program.model_proto


def _merged(first: Any, second: Any) -> Any:
    """One model of two graphs; the output of the first is the input of the second."""
    onnx, compose = onnx_package("onnx"), onnx_package("onnx.compose")
    second.ir_version = first.ir_version = min(first.ir_version, second.ir_version)
    merged = compose.merge_models(
        compose.add_prefix(first, "preprocessing/", rename_inputs=False),
        second,
        io_map=[("preprocessing/preprocessed", "normalised")],
    )
    onnx.checker.check_model(merged)
    return merged
