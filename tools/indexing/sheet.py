"""A contact sheet of the training crops of an index, as a net gets them."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import DataConfig, FinetuneConfig, parse
from pipeline.data.index import Index
from pipeline.data.plan import BatchSpec, order, training_windows
from pipeline.errors import UserError
from pipeline.runtime.files import atomic_write, writable

_BATCH = 32  # images that are decoded at once
_LEAST_SIDE = 96  # pixels; smaller crops are enlarged by a whole number, so that captions fit
_STRIP, _MARGIN = 14, 4  # pixels: height of a caption, and space between cells
DEFAULT_NUM, DEFAULT_SEED = 36, 0
DATA_OPTIONS = (
    *("crop_size", "resize_size", "interpolation", "random_crop", "crop_scale", "crop_ratio"),
    "hflip",
)
# Options that need --sheet.
OPTIONS = ("config", "num", "seed", *(f"data.{name}" for name in DATA_OPTIONS))


def write_sheet(images: Index, options: argparse.Namespace) -> None:
    """Draw the first training crops of a run, with their class ids.

    Raises:
        UserError: the index has arrays, or no image decodes.
    """
    if images.is_array.any():
        raise UserError(f"{images.path} contains arrays; a contact sheet is made of images only")
    data = read_data_options(images, options)
    num = min(DEFAULT_NUM if options.num is None else options.num, len(images))
    seed = DEFAULT_SEED if options.seed is None else options.seed
    rows, pixels = training_crops(images, data, num, seed)
    names = images.classes.identities
    sheet = draw(pixels, [names[label] for label in images.label[rows]])
    with writable(options.sheet, "give another --sheet"), atomic_write(options.sheet) as partial:
        sheet.save(partial, "PNG")
    print(
        f"{options.sheet}: the first {len(rows)} training crops of a run with train.seed {seed}, "
        f"{data.crop_size} x {data.crop_size} pixels"
    )


def read_data_options(images: Index, options: argparse.Namespace) -> DataConfig:
    """The section data of --config and of the options --data.NAME, without normalisation."""
    from pipeline.models.preprocessing import resolve_preprocessing  # imports torch, which is slow

    argv = [] if options.config is None else ["--config", str(options.config)]
    argv += ["--data.train", images.path]
    for name in DATA_OPTIONS:
        value = getattr(options, f"data.{name}")
        argv += [] if value is None else [f"--data.{name}", value]
    data = resolve_preprocessing(parse.parse(FinetuneConfig, "", argv)).data
    mean, std = [0.0] * data.channels, [1.0] * data.channels
    return replace(data, mean=mean, std=std, on_error="skip")


def training_crops(
    images: Index, data: DataConfig, num: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first crops of epoch 0; images that do not decode are left out.

    Args:
        images: an index of images.
        data: the options of preprocessing.
        num: number of crops, at most the number of images.
        seed: train.seed of the run.

    Returns:
        Rows of the index, (N,), and pixels, (N, C, S, S) float32 from 0 to 1.
    """
    import torch  # torch and DALI take seconds to import

    from pipeline.data import source
    from pipeline.data.loader import Loader

    rows = order(len(images), seed, epoch=0)[:num]

    def specs() -> Iterator[BatchSpec]:
        for start in range(0, num, _BATCH):
            batch = rows[start : start + _BATCH]
            width, height = images.width[batch], images.height[batch]
            yield BatchSpec(batch, training_windows(width, height, seed, 0, start, data))

    threads = source.decoding_threads(data)
    loader = Loader(images, specs(), data, torch.device("cpu"), _BATCH, threads)
    # A batch's images are DALI's memory, which later batches may use.
    batches = [(batch.rows, batch.images.numpy().copy()) for batch in loader]
    if not batches:
        raise UserError(f"none of the first {num} images decodes; check the archives")
    decoded, pixels = zip(*batches, strict=True)
    return np.concatenate(decoded), np.concatenate(pixels)


def draw(pixels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """A sheet of images with their captions, about as wide as high.

    Args:
        pixels: (N, C, S, S), from 0 to 1; C is 1 or 3.
        captions: N texts, which are cut to the width of an image.
    """
    scale = math.ceil(_LEAST_SIDE / pixels.shape[-1])
    side = scale * pixels.shape[-1]
    columns = math.ceil(math.sqrt(len(pixels)))
    width, height = side + _MARGIN, side + _STRIP + _MARGIN
    size = (columns * width, math.ceil(len(pixels) / columns) * height)
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = number % columns * width, number // columns * height
        values = (image * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        cell = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        sheet.paste(cell.resize((side, side), Image.Resampling.NEAREST), (x, y))
        canvas.text((x, y + side), _fitting(canvas, caption, side), "black", _font())
    return sheet


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()


def _fitting(canvas: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The beginning of a text that is at most ``width`` pixels wide. Pillow's font is of Latin
    letters; others are replaced."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while text and canvas.textlength(text, _font()) > width:
        text = text[:-1]
    return text
