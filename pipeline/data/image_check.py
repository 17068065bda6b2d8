"""An image's size and mode from its header, and whether the loader can decode it."""

import io
import os
import warnings
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from pipeline.errors import first_line

_HEAD = 16 * 1024  # bytes read of each member; the whole member if its header is longer (EXIF, ICC)
_TAIL = 64  # bytes that are searched for the end marker
# PIL's names of the formats that DALI 2.4 decodes; MPO is a JPEG file with several images.
DECODABLE = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
# Endings of files that are meant to be images. A GIF is one too, and is refused by its content.
_ENDINGS = frozenset(
    {"bmp", "gif", "j2k", "jp2", "jpe", "jpeg", "jpg", "mpo", "png", "pnm", "pbm", "pgm", "ppm"}
    | {"tif", "tiff", "webp"}
)
# PIL's limit. A small file whose header has a larger size may be meant to exhaust the memory.
MAX_PIXELS = 178_956_970


class ImageFacts(NamedTuple):
    """An image's size, format and mode, as the index records them."""

    width: int  # in pixels, as stored
    height: int
    format: str
    mode: str


class NotDecodable(Exception):
    """The loader cannot decode the image; the message gives the reason in one phrase."""


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image."""
    return name.rpartition(".")[2].lower() in _ENDINGS


def look(source: BinaryIO, offset: int, length: int) -> ImageFacts:
    """Read an image's header, and check its end.

    Args:
        source: the archive or file.
        offset: position of the image's first byte.
        length: number of bytes.

    Raises:
        NotDecodable: the bytes are not an image, or one that is cut short, too large, or of a
            format that DALI does not decode.
    """
    if length == 0:
        raise NotDecodable("empty")
    try:
        with warnings.catch_warnings():
            # PIL warns from half of its limit on; the loader decodes such images.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _look(source, offset, length)
    except UnidentifiedImageError:
        raise NotDecodable("not an image") from None
    except Image.DecompressionBombError:
        raise NotDecodable(f"more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise NotDecodable(first_line(error)) from None


def _look(source: BinaryIO, offset: int, length: int) -> ImageFacts:
    descriptor = source.fileno()
    head = os.pread(descriptor, min(length, _HEAD), offset)
    try:
        image = Image.open(io.BytesIO(head))
    except (UnidentifiedImageError, OSError, SyntaxError):
        if len(head) == length:
            raise
        image = Image.open(io.BytesIO(os.pread(descriptor, length, offset)))
    if image.format not in DECODABLE:
        raise NotDecodable(f"{image.format}, which DALI does not decode; convert it to PNG")
    tail = min(length, _TAIL)
    if not _has_end_marker(image.format, os.pread(descriptor, tail, offset + length - tail)):
        # The file may be padded or cut short. Only a full decode shows which.
        Image.open(io.BytesIO(os.pread(descriptor, length, offset))).load()
    return ImageFacts(image.width, image.height, image.format, image.mode)


def _has_end_marker(kind: str | None, tail: bytes) -> bool:
    """Whether the last bytes contain the format's end marker; True if the format has none."""
    markers = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    return kind not in markers or markers[kind] in tail
