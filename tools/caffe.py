"""Convert weights of Caffe to a .pth file for --model.weights.

    python tools/caffe.py bvlc_alexnet.caffemodel alexnet.pth
    python tools/caffe.py bvlc_alexnet.npz alexnet.pth      # arrays NAME_w and NAME_b of each layer

A .caffemodel is read by its published field numbers (caffe.proto); nothing in it is executed.
Caffe's nets take BGR images, this project's nets take RGB images. So the first layer's input
channels are reversed, which changes neither logits nor norms. Caffe's pixels are from 0 to 255,
minus the mean. Use these options (Caffe's mean as RGB, divided by 255; and 1/255):

    --data.crop_size 227 --data.mean '[0.481, 0.4575, 0.4078]'
    --data.std '[0.003921569, 0.003921569, 0.003921569]'
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from pipeline.config import arguments
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, exit_on_user_error
from pipeline.runtime.files import atomic_write, check_writable, writable
from pipeline.runtime.npz import read_npz

Arrays = dict[str, list[np.ndarray]]
_REMEDY = "give another target"

# The part of caffe.proto that contains weights: message -> (field, number, type, repeated).
_FIELD = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, list[tuple[str, int, "_FIELD.Type.ValueType | str", bool]]] = {
    "BlobShape": [("dim", 1, _FIELD.TYPE_INT64, True)],
    "BlobProto": [
        *(
            (name, number, _FIELD.TYPE_INT32, False)
            for number, name in enumerate(("num", "channels", "height", "width"), 1)
        ),
        ("data", 5, _FIELD.TYPE_FLOAT, True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, _FIELD.TYPE_DOUBLE, True),
    ],
    "LayerParameter": [("name", 1, _FIELD.TYPE_STRING, False), ("blobs", 7, "BlobProto", True)],
    # The older form of a layer, which the published AlexNet uses.
    "V1LayerParameter": [("name", 4, _FIELD.TYPE_STRING, False), ("blobs", 6, "BlobProto", True)],
    "NetParameter": [
        ("name", 1, _FIELD.TYPE_STRING, False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ],
}


def messages() -> dict[str, type[Any]]:
    """Protobuf's classes for the messages above."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                added.type = kind
                added.options.packed = repeated and kind != _FIELD.TYPE_STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in _MESSAGES
    }


def read_caffemodel(path: Path) -> Arrays:
    """The arrays of each layer that has weights, as float32.

    Raises:
        UserError: there is no such file, it is cut short, or it is not a .caffemodel.
    """
    net = messages()["NetParameter"]()
    try:
        net.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except DecodeError:
        raise UserError(f"{path} is not a .caffemodel, or is cut short") from None
    layers = {layer.name: layer for layer in (*net.layers, *net.layer) if layer.blobs}
    if not all(isinstance(name, str) for name in layers):  # bytes if not UTF-8
        raise UserError(f"{path} is damaged: the name of a layer is not text")
    if not layers:
        raise UserError(f"{path} contains no weights; is it a .caffemodel?")
    return {
        name: [_array(blob, f"{path}: {name}") for blob in layer.blobs]
        for name, layer in layers.items()
    }


def _array(blob: Any, where: str) -> np.ndarray:
    values = np.array(blob.data or blob.double_data, dtype=np.float32)
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    if min(shape, default=0) < 0 or values.size != np.prod(shape):
        raise UserError(f"{where} has {values.size} values for the shape {shape}")
    return values.reshape(shape)


def read_arrays(path: Path) -> Arrays:
    """The arrays of each layer in an .npz with NAME_w and NAME_b.

    Raises:
        UserError: there is no such file, or it has another form.
    """
    arrays = read_npz(path, "is the download complete?")
    for name, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise UserError(f"{path}: the array {name} contains no numbers")
    if not arrays:
        raise UserError(f"{path} contains no weights; it needs NAME_w and NAME_b of each layer")
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    layers = dict.fromkeys(name.rpartition("_")[0] for name in arrays)
    try:
        return {layer: [arrays[f"{layer}_w"], arrays[f"{layer}_b"]] for layer in layers}
    except KeyError as missing:
        raise UserError(f"{path} has no array {missing}; it needs NAME_w and NAME_b") from None


def state_dict(arrays: Arrays, first: str, source: Path) -> dict[str, torch.Tensor]:
    """The state dict of `pipeline.models.paper_nets.caffe_alexnet`, for RGB images.

    Args:
        arrays: weight and bias of each layer.
        first: name of the layer whose input is the image.
        source: the file with the arrays, for messages.

    Raises:
        UserError: there is no such layer, or its input has no channels.
    """
    if first not in arrays:
        layers = ", ".join(arrays)
        hint = did_you_mean(first, arrays)
        raise UserError(f"{source} has no layer --first {first}: the layers are {layers}{hint}")
    shape = arrays[first][0].shape
    if len(shape) < 2:
        raise UserError(
            f"{source}: {first} has weights of the shape {shape}, so its input is not an image"
        )
    state = {}
    for name, blobs in arrays.items():
        for part, blob in zip(("weight", "bias"), blobs, strict=False):
            value = torch.from_numpy(np.ascontiguousarray(blob))
            if part == "bias":
                value = value.flatten()
            elif value.dim() == 4 and value.shape[:2] == (1, 1):  # older files: a matrix
                value = value[0, 0]
            state[f"{name}.{part}"] = value
    state[f"{first}.weight"] = state[f"{first}.weight"].flip(1).contiguous()
    return state


def main() -> None:
    """Convert a file."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("source", type=Path, help=".caffemodel or .npz")
    parser.add_argument("target", type=Path, help=".pth to write")
    parser.add_argument(
        "--first", default="conv1", help="layer whose input is the image (%(default)s)"
    )
    options = parser.parse_args()
    with exit_on_user_error():
        check_writable(options.target, _REMEDY)
        source = options.source
        read = read_arrays if source.suffix == ".npz" else read_caffemodel
        state = state_dict(read(source), options.first, source)
        target = options.target
        with writable(target, _REMEDY), atomic_write(target) as partial, partial.open("wb") as file:
            torch.save(state, file)
    for name, value in state.items():
        print(f"{name:<16} {tuple(value.shape)}")
    print(options.target, file=sys.stderr)


if __name__ == "__main__":
    main()
