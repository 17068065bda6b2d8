"""Files of Caffe, encoded from the wire format of protobuf."""

import struct

import numpy as np


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, old: bool) -> bytes:
    """BlobProto: num to width 1 to 4 (old) or shape 7; data 5, packed floats."""
    data = field(5, struct.pack(f"<{array.size}f", *array.ravel()))
    if not old:
        return field(7, field(1, b"".join(varint(size) for size in array.shape))) + data
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(field(i, size) for i, size in enumerate(shape, 1)) + data


def caffemodel(layers: dict[str, list[np.ndarray]], old: bool) -> bytes:
    """NetParameter: name 1, and layers 2 (name 4, blobs 6) or layer 100 (name 1, blobs 7)."""
    number, name_at, blobs_at = (2, 4, 6) if old else (100, 1, 7)
    encoded = field(1, b"AlexNet")
    encoded += field(number, field(name_at, b"relu1"))  # a layer without weights
    for name, arrays in layers.items():
        blobs = b"".join(field(blobs_at, blob(array, old)) for array in arrays)
        # A field that the reader does not know (V1's top, or type) is passed over.
        encoded += field(number, field(name_at, name.encode()) + field(3, b"top") + blobs)
    return encoded
