"""DALI's graphs, from encoded bytes to normalised images, and the pipelines that run them.

Only this file imports DALI.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from pipeline.config import DataConfig

__all__ = ["GraphOptions", "Inputs", "Pipeline", "build_pipeline"]

# A batch for DALI: the encoded bytes of each image, and the five arrays of
# `pipeline.data.plan.Windows`. An index with arrays adds whether each sample is an array.
Inputs = tuple[list[np.ndarray] | np.ndarray, ...]

_FILTERS = {"bilinear": DALIInterpType.INTERP_LINEAR, "bicubic": DALIInterpType.INTERP_CUBIC}
_SCALE = 255.0  # mean and std are for pixels in [0, 1]


@dataclass(frozen=True)
class GraphOptions:
    """The preprocessing, the device and the resources of a pipeline."""

    config: DataConfig
    mean: np.ndarray  # from `pipeline.data.mean_image.mean_of`
    device: torch.device  # device of the batches
    batch_size: int  # the largest size of a batch
    num_threads: int
    has_arrays: bool  # some samples are float32 arrays, which are only mirrored

    @property
    def on_gpu(self) -> bool:
        """Whether batches are on a GPU."""
        return self.device.type == "cuda"

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether images are decoded, resized and normalised on a GPU."""
        return self.config.decoder_on(self.device.type) == "gpu"

    @property
    def half(self) -> bool:
        """Whether batches are half-precision channels_last; on GPUs only."""
        return self.config.half_input and self.on_gpu

    @property
    def has_mean_image(self) -> bool:
        """Whether the mean has a value for each pixel instead of one for each channel."""
        return self.mean.shape[1:] != (1, 1)


def build_pipeline(source: Callable[[], Inputs], options: GraphOptions) -> Pipeline:
    """A pipeline that calls ``source`` for each batch, before the batch is used."""
    pipeline = define_pipeline(source, options)
    pipeline.build()
    return pipeline


def define_pipeline(source: Callable[[], Inputs], options: GraphOptions) -> Pipeline:
    """The pipeline of `build_pipeline` without its threads and memory; it needs no GPU."""
    graph = _graph_of_images_and_arrays if options.has_arrays else _graph_of_images
    return graph(
        source,
        options,
        batch_size=options.batch_size,
        num_threads=options.num_threads,
        device_id=options.device.index if options.on_gpu else None,
        prefetch_queue_depth=options.config.prefetch,
    )


@pipeline_def
def _graph_of_images(source: Callable[[], Inputs], options: GraphOptions) -> DataNode:
    encoded, *windows = fn.external_source(source=source, num_outputs=6, batch=True, no_copy=True)
    return _on_device(options, _decode_images(options, encoded, *windows))


@pipeline_def(enable_conditionals=True)
def _graph_of_images_and_arrays(source: Callable[[], Inputs], options: GraphOptions) -> DataNode:
    encoded, *windows, is_array = fn.external_source(
        source=source, num_outputs=7, batch=True, no_copy=True
    )
    return _on_device(options, _decode_or_read(options, encoded, windows, is_array))


def _on_device(options: GraphOptions, images: DataNode) -> DataNode:
    """Copy images that the CPU has finished to the GPU of the batches. Only finished ones: the GPU
    rounds other last bits when it resizes and normalises."""
    return images.gpu() if options.on_gpu and not options.decodes_on_gpu else images


def _decode_or_read(
    options: GraphOptions, encoded: DataNode, windows: list[DataNode], is_array: Any
) -> DataNode:
    """Decode images, and read arrays. DALI rewrites the condition, so that it splits the batch.
    ``is_array`` is a DataNode; it has the type Any because the type checker does not accept a
    DataNode in a condition."""
    if is_array:
        images = _read_arrays(options, encoded, windows[-1])
    else:
        images = _decode_images(options, encoded, *windows)
    return images


def _decode_images(options: GraphOptions, encoded: DataNode, *windows: DataNode) -> DataNode:
    """Window -> decode -> resize -> normalise; the same on the CPU and the GPU."""
    anchor, shape, roi_start, roi_end, mirror = windows
    config = options.config
    images = fn.decoders.image_slice(
        encoded,
        anchor,
        shape,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        device="mixed" if options.decodes_on_gpu else "cpu",
        output_type=DALIImageType.RGB if config.channels == 3 else DALIImageType.GRAY,
        jpeg_fancy_upsampling=True,  # on a GPU, chroma is upsampled as on the CPU
        hw_decoder_load=config.hw_decoder_load,
        adjust_orientation=False,  # as PIL and torchvision: EXIF is not applied
    )
    images = fn.resize(
        images,
        size=[config.crop_size, config.crop_size],
        roi_start=roi_start,
        roi_end=roi_end,
        interp_type=_FILTERS[config.interpolation],
        antialias=True,
    )
    assert isinstance(images, DataNode), "resize returns more only where attributes are saved"
    channel_means = options.mean.flatten().tolist()
    if options.has_mean_image:  # subtracted before the flip, which mirrors it with its image
        shift = -options.mean.transpose(1, 2, 0) * _SCALE
        images = fn.cast(images, dtype=DALIDataType.FLOAT) + Constant(shift, layout="HWC")
        channel_means = [0.0] * config.channels
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=[_SCALE * value for value in channel_means],
        std=[_SCALE * value for value in config.std],
        dtype=DALIDataType.FLOAT16 if options.half else DALIDataType.FLOAT,
        output_layout="HWC" if options.half else "CHW",
    )


def _read_arrays(options: GraphOptions, encoded: DataNode, mirror: DataNode) -> DataNode:
    """Float32 arrays in the net's input space, mirrored."""
    config = options.config
    shape = [config.channels, config.crop_size, config.crop_size]
    arrays = fn.reinterpret(encoded, dtype=DALIDataType.FLOAT, shape=shape, layout="CHW")
    if options.decodes_on_gpu:
        arrays = arrays.gpu()
    arrays = fn.flip(arrays, horizontal=mirror)
    if options.half:
        arrays = fn.transpose(fn.cast(arrays, dtype=DALIDataType.FLOAT16), perm=[1, 2, 0])
    return arrays
