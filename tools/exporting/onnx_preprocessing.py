"""The preprocessing of an evaluation as an ONNX graph: resize, centre crop, normalise.

In: decoded images (N, H, W, C) uint8 of one size. Out: the net's input (N, C, S, S) float32. Sizes
and margins are rounded as torchvision rounds them.
"""

from typing import Any

import numpy as np

from exporting.packages import optional_package
from pipeline.config import DataConfig
from pipeline.data.mean_image import mean_of

OPSET = 20


def onnx_package(name: str) -> Any:
    """A package that --onnx needs.

    Raises:
        UserError: it is not installed.
    """
    return optional_package(name, "--onnx")


def preprocessing_graph(data: DataConfig) -> Any:
    """A model with the input ``images`` and the output ``preprocessed``.

    Args:
        data: the preprocessing.

    Raises:
        UserError: the package onnx is missing.
    """
    onnx, graph = onnx_package("onnx"), _Graph()
    pixels = graph.add("Cast", "images", to=onnx.TensorProto.FLOAT)
    channels_first = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    size = _target_size(graph, channels_first, data.resize_size)
    resized = _resized(graph, channels_first, size, data.interpolation)
    cropped = _centre_crop(graph, resized, size, data.crop_size)
    mean = graph.constant(255 * mean_of(data)[None].astype(np.float32))
    std = np.array(data.std, np.float32).reshape(1, -1, 1, 1)
    centred = graph.add("Sub", cropped, mean)
    graph.add("Mul", centred, graph.constant(1 / (255 * std)), output="preprocessed")
    return graph.model(data.channels, data.crop_size)


class _Graph:
    """An ONNX graph under construction; tensors are known by their names."""

    def __init__(self) -> None:
        self._onnx = onnx_package("onnx")
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        node = self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self._nodes.append(node)
        return output

    def constant(self, value: np.ndarray) -> str:
        """Add a constant; returns its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant vector of whole numbers; returns its name."""
        return self.constant(np.array(values, np.int64))

    def model(self, channels: int, side: int) -> Any:
        """The finished model."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "preprocessing",
            [info("images", types.UINT8, ["N", "H", "W", channels])],
            [info("preprocessed", types.FLOAT, ["N", channels, side, side])],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def _target_size(graph: _Graph, images: str, resize_size: int) -> str:
    """Height and width after resizing; the longer side is rounded down."""
    size = graph.add("Shape", images, start=2)
    shorter = graph.add("ReduceMin", size, keepdims=1)
    return graph.add("Div", graph.add("Mul", size, graph.integers(resize_size)), shorter)


def _resized(graph: _Graph, images: str, size: str, interpolation: str) -> str:
    batch_and_channels = graph.add("Shape", images, start=0, end=2)
    shape = graph.add("Concat", batch_and_channels, size, axis=0)
    return graph.add(
        "Resize",
        *(images, "", "", shape),
        antialias=1,
        mode="linear" if interpolation == "bilinear" else "cubic",
        cubic_coeff_a=-0.5,
        exclude_outside=1,  # as PIL and torch: weights beyond the edge are left out
    )


def _centre_crop(graph: _Graph, images: str, size: str, crop_size: int) -> str:
    """The centre square; half of an odd margin is rounded to the even number."""
    types = onnx_package("onnx").TensorProto
    square = graph.integers(crop_size, crop_size)
    margin = graph.add("Cast", graph.add("Sub", size, square), to=types.FLOAT)
    half = graph.add("Div", margin, graph.constant(np.array([2], np.float32)))
    start = graph.add("Cast", graph.add("Round", half), to=types.INT64)
    return graph.add("Slice", images, start, graph.add("Add", start, square), graph.integers(2, 3))
