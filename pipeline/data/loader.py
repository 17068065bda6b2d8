"""Batches through DALI: the only file that imports it.

In: an index and a stream of `BatchSpec`s (rows and windows from the plan). Out: `Batch`es of
normalised images on the rank's device. DALI decodes, resizes and normalises in threads (and on
the GPU where there is one) while the net works; Python only slices the archives.
"""

import gc
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline
from nvidia.dali.pipeline import pipeline_def

from pipeline.config import DataConfig
from pipeline.data import image_headers
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.data.mean_image import mean_of
from pipeline.data.plan import BatchSpec, Windows
from pipeline.errors import UserError


@dataclass(frozen=True)
class Batch:
    """What the net gets."""

    images: torch.Tensor  # (B, C, S, S), normalised
    labels: torch.Tensor  # (B,) int64, on the same device
    rows: np.ndarray  # (B,) int64, rows of the index


class UndecodableImages(UserError):
    """Images do not decode, and ``data.on_error`` is raise."""


class Loader:
    """Decodes a stream of batches ahead of their use.

    Attributes:
        wait_seconds: time the caller has waited for data so far.
        skipped: rows of images that did not decode, with ``data.on_error: skip``.
    """

    def __init__(
        self,
        index: Index,
        specs: Iterable[BatchSpec],
        config: DataConfig,
        device: torch.device,
        batch_size: int,
        threads: int,
        half: bool = False,
    ) -> None:
        """Begin decoding.

        Args:
            index: where the images are.
            specs: the batches, in order; may be endless.
            config: how images become input.
            device: of the batches; a CUDA device decodes on the GPU.
            batch_size: largest number of images in a batch.
            threads: DALI's worker threads.
            half: half-precision channels_last batches (CUDA only).

        Raises:
            UserError: the archives are missing or not the indexed ones, arrays in them are of
                another size than the net's input, or the mean image is.
        """
        self.index = index
        self._mixed = bool(index.is_array.any())
        if self._mixed:
            _check_arrays(index, config)
        self.wait_seconds = 0.0
        self.skipped: list[int] = []
        self._files = Files(index)
        self._specs = iter(specs)
        self._config = config
        self._mean = mean_of(config)
        self._device = device
        self._options = {
            "batch_size": batch_size,
            "num_threads": threads,
            "device_id": device.index if device.type == "cuda" else None,
            "prefetch_queue_depth": config.prefetch,
        }
        self._half = half and device.type == "cuda"
        self._bad_rows: set[int] = set()
        # Batches handed to DALI and not yet returned. Their views keep the mapped files alive,
        # which DALI reads without a copy; the last one stays until the next has been returned.
        self._in_flight: deque[tuple[BatchSpec, tuple[Any, ...]]] = deque()
        self._returned: tuple[BatchSpec, tuple[Any, ...]] | None = None
        self._pipeline: Pipeline | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the stream, in its order.

        Raises:
            UndecodableImages: names them (``data.on_error: raise``).
        """
        self._pipeline = self._build(self._source)
        try:
            while True:
                begin = time.perf_counter()
                batch = self._next()
                if batch is None:
                    return
                self.wait_seconds += time.perf_counter() - begin
                yield batch
        finally:
            self._close()

    def _next(self) -> Batch | None:
        images = failure = None
        while images is None:
            try:
                images = self._run()
            except StopIteration:
                return None
            except RuntimeError as error:
                # Its traceback would keep the broken pipeline alive.
                failure = error.with_traceback(None)
            if images is None:
                self._recover(failure)
        self._returned = self._in_flight.popleft()
        spec = self._returned[0]
        labels = torch.from_numpy(self.index.label[spec.rows].astype(np.int64))
        return Batch(images, labels.to(self._device, non_blocking=True), spec.rows)

    def _close(self) -> None:
        """End DALI's threads first, and only then let go of the bytes that they read."""
        self._pipeline = None
        gc.collect()  # the pipeline's Python object has reference cycles
        self._in_flight.clear()
        self._returned = None

    def _run(self) -> torch.Tensor:
        (output,) = self._pipeline.run()
        # DALI's dynamic executor gives the buffer away for as long as the tensor lives.
        with self._device:
            images = torch.from_dlpack(output.as_tensor())
        if self._half:
            images = images.permute(0, 3, 1, 2)  # NHWC memory is channels_last NCHW
        return images

    def _source(self, _: int) -> tuple[Any, ...]:
        spec = next(self._specs)
        if self._bad_rows:
            spec = self._without_bad(spec)
        views = self._files.views(spec.rows)
        # The decoder of DALI 2.4 crashes the process (its threads outlive their batch) when one
        # image of several has a header that it cannot parse.
        bad = [
            row
            for row, view in zip(spec.rows.tolist(), views, strict=True)
            if not self.index.is_array[row]
            and image_headers.size(view) != (self.index.width[row], self.index.height[row])
        ]
        if bad:
            self._leave_out(bad)
            spec = self._without_bad(spec)
            views = self._files.views(spec.rows)
        inputs = self._inputs(views, spec)
        self._in_flight.append((spec, inputs))
        return inputs

    def _without_bad(self, spec: BatchSpec) -> BatchSpec:
        good = np.array([int(row) not in self._bad_rows for row in spec.rows])
        if not good.any():
            raise UserError(
                f"no image of a batch decodes: {', '.join(map(self.index.id, spec.rows[:8]))}; "
                "check the archives, or make the index again with tools/index.py --verify"
            )
        return spec.take(np.flatnonzero(good))

    def _recover(self, error: RuntimeError) -> None:
        """Find the images that broke the pipeline; name them, or go on without them."""
        pending = [spec for spec, _ in self._in_flight]
        self._close()
        bad = sorted({row for spec in pending for row in self._undecodable(spec)})
        if not bad:
            raise error  # not an image's fault
        self._leave_out(bad)
        self._specs = itertools.chain(pending, self._specs)
        self._pipeline = self._build(self._source)

    def _leave_out(self, bad: list[int]) -> None:
        """Go on without these rows, or raise an error that names them."""
        names = [self.index.id(row) for row in bad]
        if self._config.on_error == "raise":
            raise UndecodableImages(
                f"{len(bad)} image(s) in {self.index.path} do not decode: {', '.join(names[:8])}; "
                "repair them, make the index again with tools/index.py --verify, "
                "or go on without them by --data.on_error skip"
            ) from None
        for name in names:
            print(f"left out {name}: it does not decode", file=sys.stderr, flush=True)
        self.skipped += bad
        self._bad_rows.update(bad)

    def _undecodable(self, spec: BatchSpec) -> list[int]:
        """Decode a batch one image at a time; the rows that fail."""
        single = (spec.take(np.array([position])) for position in range(len(spec.rows)))
        return [int(image.rows[0]) for image in single if not self._decodes(image)]

    def _decodes(self, image: BatchSpec) -> bool:
        inputs = self._inputs(self._files.views(image.rows), image)
        pipeline = self._build(lambda: inputs, batch_size=1)
        try:
            pipeline.run()
        except RuntimeError:
            return False
        finally:
            del pipeline  # before its inputs go
            gc.collect()
        return True

    def _build(self, source: Any, **changes: int) -> Pipeline:
        definition = _definition(
            source, self._config, self._mean, self._device, self._half, self._mixed
        )
        made = pipeline_def(definition, enable_conditionals=self._mixed)
        pipeline = made(**(self._options | changes))
        pipeline.build()
        return pipeline

    def _inputs(self, views: list[np.ndarray], spec: BatchSpec) -> tuple[Any, ...]:
        windows = (getattr(spec.windows, f.name) for f in fields(Windows))
        mixed = (self.index.is_array[spec.rows],) if self._mixed else ()
        return (views, *windows, *mixed)


def _check_arrays(index: Index, config: DataConfig) -> None:
    shape = (config.channels, config.crop_size, config.crop_size)
    rows = np.flatnonzero(index.is_array)
    sizes = np.stack([index.width[rows], index.height[rows]])
    if (sizes != config.crop_size).any() or (index.length[rows] != 4 * np.prod(shape)).any():
        raise UserError(
            f"{index.path}: its arrays are not of the shape {shape} (data.channels, "
            "data.crop_size); make them again with tools/adversarial.py and these options"
        )


_FILTERS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def _definition(
    source: Any,
    config: DataConfig,
    mean: np.ndarray,
    device: torch.device,
    half: bool,
    mixed: bool,
) -> Any:
    """DALI's graph: window -> decode -> resize -> normalise; the same on the CPU and the GPU. With
    ``mixed`` some samples are arrays, which are only mirrored."""
    gpu = device.type == "cuda"
    scale = 255.0  # mean and std are given for pixels in [0, 1]
    is_image = mean.shape[1:] != (1, 1)
    per_channel = [0.0] * config.channels if is_image else mean.flatten().tolist()

    def decoded(encoded: Any, anchor: Any, shape: Any, start: Any, end: Any, mirror: Any) -> Any:
        images = fn.decoders.image_slice(
            encoded,
            anchor,
            shape,
            axes=[0, 1],
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB if config.channels == 3 else types.GRAY,
            adjust_orientation=False,  # as PIL and torchvision: EXIF is not applied
        )
        images = fn.resize(
            images,
            size=[config.crop_size, config.crop_size],
            roi_start=start,
            roi_end=end,
            interp_type=_FILTERS[config.interpolation],
            antialias=True,
        )
        if is_image:  # the flip turns the mean image with its image
            shift = -mean.transpose(1, 2, 0) * scale
            images = fn.cast(images, dtype=types.FLOAT) + types.Constant(shift, layout="HWC")
        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[scale * value for value in per_channel],
            std=[scale * value for value in config.std],
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC" if half else "CHW",
        )

    def stored(encoded: Any, mirror: Any) -> Any:
        shape = [config.channels, config.crop_size, config.crop_size]
        values = fn.reinterpret(encoded, dtype=types.FLOAT, shape=shape, layout="CHW")
        if gpu:
            values = values.gpu()
        values = fn.flip(values, horizontal=mirror)
        if half:
            values = fn.transpose(fn.cast(values, dtype=types.FLOAT16), perm=[1, 2, 0])
        return values

    def of_images() -> Any:
        return decoded(*fn.external_source(source=source, num_outputs=6, batch=True, no_copy=True))

    def of_both() -> Any:
        *inputs, is_array = fn.external_source(
            source=source, num_outputs=7, batch=True, no_copy=True
        )
        if is_array:  # noqa: SIM108 (of each sample: DALI splits the batch)
            images = stored(inputs[0], inputs[-1])
        else:
            images = decoded(*inputs)
        return images

    return of_both if mixed else of_images
