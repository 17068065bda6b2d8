"""An image's size and mode from its header, and whether the loader can decode it."""

import io
import os
import warnings
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from pipeline.errors import first_line

_HEAD = 16 * 1024  # bytes read of each member; the whole member if its header is longer (EXIF, ICC)
_LONGEST_HEADER = 64 * 2**20  # bytes that are read of a file that may be no image
_TAIL = 64  # bytes that are searched for the end marker
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # fields of TIFF
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
    except (OSError, SyntaxError, ValueError, IndexError, RuntimeError) as error:
        raise NotDecodable(first_line(error)) from None


def _look(source: BinaryIO, offset: int, length: int) -> ImageFacts:
    descriptor = source.fileno()
    head = os.pread(descriptor, min(length, _HEAD), offset)
    try:
        image = Image.open(io.BytesIO(head))
    except (UnidentifiedImageError, OSError, SyntaxError):
        if len(head) == length:
            raise
        image = Image.open(io.BytesIO(os.pread(descriptor, min(length, _LONGEST_HEADER), offset)))
    kind = image.format
    if kind not in DECODABLE:
        raise NotDecodable(f"{kind}, which DALI does not decode; convert it to PNG")
    if kind == "TIFF" and len(head) < length:  # its fields may be anywhere in the file
        image = Image.open(io.BytesIO(os.pread(descriptor, length, offset)))
    difference = _difference_from_pil(image)
    if difference:
        raise NotDecodable(difference)
    tail = min(length, _TAIL)
    if not _has_end_marker(kind, os.pread(descriptor, tail, offset + length - tail)):
        # The file may be padded or cut short. Only a full decode shows which.
        Image.open(io.BytesIO(os.pread(descriptor, length, offset))).load()
    return ImageFacts(image.width, image.height, kind, image.mode)


def _difference_from_pil(image: ImageFile.ImageFile) -> str:
    """A reason for which DALI would not decode an image to PIL's pixels; empty if it would.

    tests/unit/test_image_formats.py measures this with one file of each kind.
    """
    kind, mode = image.format, image.mode
    if mode == "F" or mode.startswith("I"):
        return f"{kind} with grey of more than 8 bits, which PIL clips; scale it to 8 bits"
    if kind in ("JPEG", "MPO") and mode == "CMYK" and "adobe" not in image.info:
        return "CMYK without Adobe's marker, whose inks DALI inverts; convert it to RGB"
    if kind == "JPEG2000" and mode == "LA":
        return "JPEG2000 of grey with alpha, which DALI does not decode; convert it to PNG"
    if kind == "PNG" and getattr(image, "default_image", False):
        return "an animated PNG whose still image is not its first frame; store one of the two"
    if kind == "PPM" and _largest_value(image) not in (255, 65535):
        return "PPM with another largest value than 255 or 65535; convert it to PNG"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(_ORIENTATION, 1) != 1:
            return "a rotated TIFF: PIL applies the orientation, DALI does not; store it upright"
        if _BITS_PER_SAMPLE not in image.tag_v2:
            return "TIFF without BitsPerSample, which DALI does not decode; convert it to PNG"
    return ""


def _largest_value(image: ImageFile.ImageFile) -> int:
    """The largest value that a PPM file states; 255 for bits, which have none."""
    arguments = image.tile[0].args
    return arguments[1] if isinstance(arguments, tuple) else 255


def _has_end_marker(kind: str, tail: bytes) -> bool:
    """Whether the last bytes contain the format's end marker. MPO has several; WebP states its
    length, which PIL compares; other formats have no marker."""
    markers = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "MPO": b"", "WEBP": b""}
    return kind in markers and markers[kind] in tail
