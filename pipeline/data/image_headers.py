"""Image sizes from headers, fast enough to check each image against the index before decoding."""

import io
import struct
import warnings

import numpy as np
from PIL import Image

# JPEG's frame headers SOF0..SOF15, without DHT (C4), JPG (C8) and DAC (CC): ITU-T T.81, table B.1.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"


def size(encoded: np.ndarray) -> tuple[int, int] | None:
    """Width and height in pixels from the header; None if it cannot be read.

    A PNG needs all its chunks up to IEND, because DALI's reader of headers needs them.

    Args:
        encoded: (B,) uint8, the bytes of an image file.
    """
    data = encoded.data
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:8] == _PNG:
            return _png(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except (
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
        struct.error,
    ):
        return None


def _jpeg(data: memoryview) -> tuple[int, int] | None:
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _png(data: memoryview) -> tuple[int, int] | None:
    position = len(_PNG)
    while data[position + 4 : position + 8] != b"IEND":
        position += 12 + struct.unpack_from(">I", data, position)[0]  # length, type, data, CRC
    return struct.unpack_from(">II", data, len(_PNG) + 8)
