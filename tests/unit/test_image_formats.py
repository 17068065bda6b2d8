"""Every format of images decodes to the pixels of PIL, or is named when it is indexed.

PIL's pixels are those of torchvision's default loader, ``Image.open(path).convert("RGB")``. The
table in docs/data-and-models.md states what is measured here.
"""

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data import index, scan
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.plan import BatchSpec, Windows
from tests.helpers.images import decode, encode, picture

WIDTH, HEIGHT = 61, 47
TOP, LEFT, SIDE = 8, 15, 32  # the window that is compared, at the image's own scale

RGB = picture(WIDTH, HEIGHT)
GREY = RGB.convert("L")
OPACITY = Image.fromarray(
    np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint8)
)
NOISE = np.random.default_rng(0).integers(-120, 120, (HEIGHT, WIDTH, 3))
RGB_16 = (np.asarray(RGB).astype(np.int64) * 257 + NOISE).clip(0, 65535).astype(np.uint16)
OPACITY_16 = np.asarray(OPACITY).astype(np.uint16)[..., None] * 257


def two_images(kind: str, **options: Any) -> bytes:
    """A file of two images, of which PIL and the loader decode the first."""
    second = picture(WIDTH, HEIGHT, seed=1)
    return encode(RGB.copy(), kind, save_all=True, append_images=[second], **options)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(OPACITY)
    return image


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encode(RGB, kind, exif=exif)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG of (height, width, channels) uint16: 1 grey, 2 with alpha, 3 RGB, 4 with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ycck() -> bytes:
    """A JPEG of YCbCr and black, as some programs for print write it."""
    inverted = [band.point(lambda value: 255 - value) for band in RGB.convert("YCbCr").split()]
    black = Image.new("L", RGB.size, 30)
    cmyk = Image.merge("CMYK", (*inverted, black))
    encoded = bytearray(encode(cmyk, "JPEG", quality=95, subsampling=0))
    transform = encoded.index(b"Adobe") + 11
    assert encoded[transform] == 0
    encoded[transform] = 2  # the first three channels are YCbCr
    return bytes(encoded)


def cmyk_without_adobe() -> bytes:
    encoded = encode(RGB.convert("CMYK"), "JPEG", quality=95)
    start = encoded.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", encoded, start + 2)
    return encoded[:start] + encoded[start + 2 + length :]


def tiff_of_16_bits() -> bytes:
    bits = 8 + 2 + 12 * 9 + 4  # position of the values of BitsPerSample, behind nine fields
    fields = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: 2, 273: bits + 6, 277: 3}
    fields |= {278: HEIGHT, 279: RGB_16.nbytes}
    encoded = b"II*\0" + struct.pack("<IH", 8, len(fields))
    for tag, value in fields.items():
        encoded += struct.pack("<HHII", tag, *((3, 3) if tag == 258 else (4, 1)), value)
    return encoded + struct.pack("<IHHH", 0, 16, 16, 16) + RGB_16.astype("<u2").tobytes()


def ppm(largest: int) -> bytes:
    values = (np.asarray(RGB).astype(np.int64) * largest) // 255
    return (
        b"P6\n%d %d\n%d\n" % (WIDTH, HEIGHT, largest)
        + values.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    )


# The largest difference from PIL's pixels, of 255, that is allowed.
DECODED: dict[str, tuple[bytes, int]] = {
    "JPEG": (encode(RGB, "JPEG"), 0),
    "JPEG, full chroma": (encode(RGB, "JPEG", subsampling=0), 0),
    "JPEG, progressive": (encode(RGB, "JPEG", progressive=True), 0),
    "JPEG, grey": (encode(GREY, "JPEG"), 0),
    "JPEG, RGB without YCbCr": (encode(RGB, "JPEG", keep_rgb=True), 0),
    "JPEG, CMYK": (encode(RGB.convert("CMYK"), "JPEG"), 0),
    "JPEG, YCCK": (ycck(), 1),
    **{f"JPEG, orientation {k}": (oriented("JPEG", k), 0) for k in range(1, 9)},
    "MPO": (two_images("MPO"), 0),
    "PNG": (encode(RGB, "PNG"), 0),
    "PNG, orientation 6": (oriented("PNG", 6), 0),
    "PNG, grey": (encode(GREY, "PNG"), 0),
    "PNG, 1 bit": (encode(RGB.convert("1"), "PNG"), 0),
    "PNG, palette": (encode(RGB.quantize(64), "PNG"), 0),
    "PNG, palette of 4 bits": (encode(RGB.quantize(12), "PNG", bits=4), 0),
    "PNG, palette with transparency": (encode(RGB.quantize(64), "PNG", transparency=5), 0),
    "PNG, transparent colour": (encode(RGB, "PNG", transparency=(10, 20, 30)), 0),
    "PNG, alpha": (encode(with_alpha(RGB), "PNG"), 0),
    "PNG, grey with alpha": (encode(with_alpha(GREY), "PNG"), 0),
    "PNG, 16-bit RGB": (png_of_16_bits(RGB_16), 1),
    "PNG, 16-bit RGB with alpha": (png_of_16_bits(np.concatenate([RGB_16, OPACITY_16], 2)), 1),
    "PNG, 16-bit grey with alpha": (
        png_of_16_bits(np.concatenate([RGB_16[..., :1], OPACITY_16], 2)),
        1,
    ),
    "PNG, animated": (two_images("PNG"), 0),
    "WebP, lossy": (encode(RGB, "WEBP"), 0),
    "WebP, lossless": (encode(RGB, "WEBP", lossless=True), 0),
    "WebP, lossy with alpha": (encode(with_alpha(RGB), "WEBP"), 0),
    "WebP, lossless with alpha": (encode(with_alpha(RGB), "WEBP", lossless=True), 0),
    "WebP, animated": (two_images("WEBP"), 0),
    "WebP, orientation 6": (oriented("WEBP", 6), 0),
    "TIFF": (encode(RGB, "TIFF"), 0),
    "TIFF, LZW": (encode(RGB, "TIFF", compression="tiff_lzw"), 0),
    "TIFF, Deflate": (encode(RGB, "TIFF", compression="tiff_deflate"), 0),
    "TIFF, JPEG": (encode(RGB, "TIFF", compression="jpeg"), 0),
    "TIFF, grey": (encode(GREY, "TIFF"), 0),
    "TIFF, fax": (encode(RGB.convert("1"), "TIFF", compression="group4"), 0),
    "TIFF, palette": (encode(RGB.quantize(64), "TIFF"), 1),
    "TIFF, alpha": (encode(with_alpha(RGB), "TIFF"), 0),
    "TIFF, CMYK": (encode(RGB.convert("CMYK"), "TIFF"), 0),
    "TIFF, YCbCr": (encode(RGB.convert("YCbCr"), "TIFF"), 1),
    "TIFF, 16-bit RGB": (tiff_of_16_bits(), 1),
    "TIFF, pages": (two_images("TIFF"), 0),
    "TIFF, orientation 1": (oriented("TIFF", 1), 0),
    "BMP": (encode(RGB, "BMP"), 0),
    "BMP, grey": (encode(GREY, "BMP"), 0),
    "BMP, palette": (encode(RGB.quantize(64), "BMP"), 0),
    "BMP, 1 bit": (encode(RGB.convert("1"), "BMP"), 0),
    "BMP, 32 bits": (encode(with_alpha(RGB), "BMP"), 0),
    "PPM": (encode(RGB, "PPM"), 0),
    "PPM, 16 bits": (ppm(65535), 0),
    "PGM": (encode(GREY, "PPM"), 0),
    "PBM": (encode(RGB.convert("1"), "PPM"), 0),
    "JPEG 2000": (encode(RGB, "JPEG2000"), 0),
    "JPEG 2000, codestream": (encode(RGB, "JPEG2000", no_jp2=True), 0),
    "JPEG 2000, grey": (encode(GREY, "JPEG2000"), 0),
    "JPEG 2000, alpha": (encode(with_alpha(RGB), "JPEG2000"), 0),
}

GREY_16 = Image.fromarray(RGB_16[..., 0])
CLIPPED = "with grey of more than 8 bits, which PIL clips; scale it to 8 bits"
NOT_DECODED = "which DALI does not decode; convert it to PNG"
LEFT_OUT: dict[str, tuple[bytes, str]] = {
    "JPEG, CMYK without Adobe's marker": (cmyk_without_adobe(), "CMYK without Adobe's marker"),
    "PNG, 16-bit grey": (encode(GREY_16, "PNG"), f"PNG {CLIPPED}"),
    "PNG, animated after a still image": (
        two_images("PNG", default_image=True),
        "an animated PNG whose still image is not its first frame",
    ),
    "GIF": (encode(RGB, "GIF"), f"GIF, {NOT_DECODED}"),
    "GIF, animated": (two_images("GIF"), f"GIF, {NOT_DECODED}"),
    "TIFF, 16-bit grey": (encode(GREY_16, "TIFF"), f"TIFF {CLIPPED}"),
    "TIFF, 32-bit grey": (encode(GREY.convert("I"), "TIFF"), f"TIFF {CLIPPED}"),
    "TIFF, floating point": (encode(GREY.convert("F"), "TIFF"), f"TIFF {CLIPPED}"),
    "TIFF, 1 bit": (encode(RGB.convert("1"), "TIFF"), "TIFF without BitsPerSample"),
    **{
        f"TIFF, orientation {k}": (oriented("TIFF", k), "a rotated TIFF: PIL applies")
        for k in range(2, 9)
    },
    "PGM, 16 bits": (encode(GREY.convert("I"), "PPM"), f"PPM {CLIPPED}"),
    "PPM, 100": (ppm(100), "PPM with another largest value than 255 or 65535"),
    "PPM, 1000": (ppm(1000), "PPM with another largest value than 255 or 65535"),
    "JPEG 2000, 16-bit grey": (encode(GREY_16, "JPEG2000"), f"JPEG2000 {CLIPPED}"),
    "JPEG 2000, grey with alpha": (
        encode(with_alpha(GREY), "JPEG2000"),
        "JPEG2000 of grey with alpha",
    ),
    **{
        kind: (encode(RGB, kind), f"{kind}, {NOT_DECODED}") for kind in ("TGA", "ICO", "PCX", "DDS")
    },
}


def indexed(folder: Path, files: dict[str, bytes]) -> tuple[Index | None, dict[str, str]]:
    """The index of files, and the reason for each that is left out."""
    root = folder / "root"
    (root / "c").mkdir(parents=True)
    for name, content in files.items():
        (root / "c" / name).write_bytes(content)
    rows, classes = scan.scan_folder(root)
    reasons = {name.removeprefix("c/"): reason for name, reason in rows.rejected}
    if not len(rows):
        return None, reasons
    index.write(folder / "i.parquet", rows.table(), root, classes)
    return index.read(str(folder / "i.parquet")), reasons


def windows(images: Index, channels: Literal[1, 3]) -> dict[str, torch.Tensor]:
    """The decoded window of each image by the loader, (channels, SIDE, SIDE), 0 to 255."""
    num = len(images)
    data = DataConfig(
        mean=[0.0] * channels,
        std=[1 / 255] * channels,
        channels=channels,
        crop_size=SIDE,
        resize_size=SIDE,
    )
    anchor = np.tile(np.array([[TOP, LEFT]], np.float32), (num, 1))
    start, end = np.zeros((num, 2), np.float32), np.full((num, 2), SIDE, np.float32)
    spec = BatchSpec(np.arange(num), Windows(anchor, end, start, end, np.zeros(num, np.int32)))
    (batch,) = Loader(images, [spec], data, torch.device("cpu"), num, threads=2)
    return {images.id(row).removeprefix("c/"): batch.images[row] for row in range(num)}


def differences(folder: Path, channels: Literal[1, 3]) -> dict[str, np.ndarray]:
    """The absolute difference of each format's window from PIL's, (channels, SIDE, SIDE)."""
    images, reasons = indexed(folder, {name: content for name, (content, _) in DECODED.items()})
    assert reasons == {}
    assert images is not None
    decoded = windows(images, channels)
    assert decoded.keys() == DECODED.keys()
    by_name = {}
    for name, (content, _) in DECODED.items():
        image = decode(content).convert("RGB" if channels == 3 else "L")
        expected = np.asarray(image, np.float32).reshape(HEIGHT, WIDTH, channels)
        expected = expected[TOP : TOP + SIDE, LEFT : LEFT + SIDE].transpose(2, 0, 1)
        by_name[name] = np.abs(decoded[name].numpy() - expected)
    return by_name


def test_formats_decode_as_pil_does(tmp_path: Path) -> None:
    largest = {name: float(values.max()) for name, values in differences(tmp_path, 3).items()}
    assert {name: value for name, value in largest.items() if value > DECODED[name][1]} == {}


def test_formats_decode_to_grey_as_pil_does(tmp_path: Path) -> None:
    """The luma of a JPEG is stored; PIL computes it again from RGB."""
    means = {name: float(values.mean()) for name, values in differences(tmp_path, 1).items()}
    assert {name: value for name, value in means.items() if value > 1} == {}


def test_formats_that_decode_to_other_pixels_are_left_out(tmp_path: Path) -> None:
    images, reasons = indexed(tmp_path, {name: content for name, (content, _) in LEFT_OUT.items()})
    assert images is None
    assert reasons.keys() == LEFT_OUT.keys()
    for name, (_, beginning) in LEFT_OUT.items():
        assert reasons[name].startswith(beginning), name
        assert "; " in reasons[name], name  # what to do


def test_fields_of_a_tiff_beyond_the_first_bytes(tmp_path: Path) -> None:
    large = picture(200, 150)
    exif = Image.Exif()
    exif[274] = 3
    files = {"upright": encode(large, "TIFF"), "rotated": encode(large, "TIFF", exif=exif)}
    for content in files.values():
        assert len(content) > 64 * 1024
    images, reasons = indexed(tmp_path, files)
    assert images is not None
    assert images.id(0) == "c/upright"
    assert reasons.keys() == {"rotated"}
