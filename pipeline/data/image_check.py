"""Size and mode in an image's header, and whether the loader's decoder can read such an image."""

import io
import os
import warnings
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from pipeline.errors import first_line

_HEAD = 16 * 1024  # bytes read of each member; longer headers (EXIF, ICC) take the whole member
_TAIL = 64  # bytes in which the end mark is looked for
# PIL's names of the formats that DALI 2.4 decodes; MPO is a JPEG with further images behind it.
DECODABLE = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
# PIL's limit: a small file with a larger size in its header may be made to exhaust the memory.
MAX_PIXELS = 178_956_970


class ImageFacts(NamedTuple):
    """What an index records of an image."""

    width: int  # in pixels, as stored
    height: int
    format: str
    mode: str


class NotDecodable(Exception):
    """The loader could not read the image; the message says why, in a few words."""


def look(source: BinaryIO, offset: int, length: int) -> ImageFacts:
    """Read an image's header, and check its end.

    Args:
        source: the archive or file.
        offset: of the image's first byte.
        length: in bytes.

    Raises:
        NotDecodable: no image, one that is cut short or too large, or of another format.
    """
    if length == 0:
        raise NotDecodable("empty")
    try:
        with warnings.catch_warnings():
            # PIL warns from half of its limit on; such images are in order.
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
    if not _ends(image.format, os.pread(descriptor, tail, offset + length - tail)):
        # Some writers pad the end: only a full decode tells padding from a missing end.
        Image.open(io.BytesIO(os.pread(descriptor, length, offset))).load()
    return ImageFacts(image.width, image.height, image.format, image.mode)


def _ends(kind: str | None, tail: bytes) -> bool:
    """Whether the last bytes hold the format's end mark, where it has one."""
    marks = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    return kind not in marks or marks[kind] in tail
