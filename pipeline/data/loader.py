"""Batches of decoded images, through DALI.

In: an index and a stream of `BatchSpec`s (rows and windows from the plan). Out: `Batch`es of
normalised images on the rank's device. DALI decodes, resizes and normalises in threads (and on
the GPU where there is one) while the net works; a thread reads the headers of coming images.
"""

import gc
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.buffers_in_use import BuffersInUse
from pipeline.data.dali_graph import GraphOptions, Inputs, Pipeline, build_pipeline
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.data.mean_image import mean_of
from pipeline.data.plan import BatchSpec, Windows
from pipeline.data.read_ahead import EncodedBatch, ReadAhead
from pipeline.errors import UserError, first_few
from pipeline.runtime.allocator import is_out_of_memory


@dataclass(frozen=True)
class Batch:
    """Images and labels on the device of the net."""

    images: torch.Tensor  # (B, C, S, S), normalised
    labels: torch.Tensor  # (B,) int64, on the same device
    rows: np.ndarray  # (B,) int64, rows of the index


class UndecodableImages(UserError):
    """Images do not decode, and ``data.on_error`` is raise."""


class Loader:
    """Decodes a stream of batches ahead of their use.

    Attributes:
        wait_seconds: time the caller has waited for data so far.
        skipped: rows of images that did not decode, with ``data.on_error: skip``. A batch in which
            no image decodes is left out.
    """

    _skips_batches = True

    def __init__(
        self,
        index: Index,
        specs: Iterable[BatchSpec],
        config: DataConfig,
        device: torch.device,
        batch_size: int,
        threads: int,
    ) -> None:
        """Check the archives and the mean; iterating starts the decoding.

        Args:
            index: the positions of the images.
            specs: the batches, in order; may be endless.
            config: the options of preprocessing.
            device: device of the batches; on a CUDA device, ``data.decoder`` says what decodes.
            batch_size: largest number of images in a batch.
            threads: number of DALI's worker threads.

        Raises:
            UserError: the archives are missing or not the indexed ones, or the size of arrays or of
                the mean image is not that of the net's input.
        """
        self.index = index
        has_arrays = bool(index.is_array.any())
        if has_arrays:
            _check_arrays(index, config)
        self.wait_seconds = 0.0
        self.skipped: list[int] = []
        self._files = Files(index)
        self._specs = iter(specs)
        self._options = GraphOptions(
            config, mean_of(config), device, batch_size, threads, has_arrays
        )
        self._bad_rows: set[int] = set()
        # Batches that were passed to DALI and not returned yet. DALI reads the mapped files without
        # a copy; the views of the batches keep these files open. The last batch is kept until the
        # next one has been returned.
        self._in_flight: deque[tuple[EncodedBatch, Inputs]] = deque()
        self._returned: tuple[EncodedBatch, Inputs] | None = None
        self._in_use = BuffersInUse(device)
        # Batches of a pipeline that failed, which are passed to the next one.
        self._repeated: deque[EncodedBatch] = deque()
        self._read_ahead: ReadAhead | None = None
        self._pipeline: Pipeline | None = None

    def __iter__(self) -> Generator[Batch]:
        """Yield the batches of the stream, in its order.

        Raises:
            UndecodableImages: images do not decode, and ``data.on_error`` is raise; names them.
        """
        self._read_ahead = ReadAhead(self._specs, self._files)
        try:
            self._pipeline = build_pipeline(self._next_inputs, self._options)
            while True:
                begin = time.perf_counter()
                batch = self._next()
                if batch is None:
                    return
                self.wait_seconds += time.perf_counter() - begin
                yield batch
        finally:
            self._end_pipeline()
            self._read_ahead.close()
            self._read_ahead = None

    def _next(self) -> Batch | None:
        self._in_use.release_read()
        while True:
            try:
                images = self._run()
                self._in_use.add(images)
                break
            except StopIteration:
                return None
            except RuntimeError as error:
                # The traceback is removed, because it refers to the broken pipeline.
                failure = error.with_traceback(None)
            self._recover(failure)
        self._returned = self._in_flight.popleft()
        spec = self._returned[0].spec
        labels = torch.from_numpy(self.index.label[spec.rows].astype(np.int64))
        return Batch(images, labels.to(self._options.device, non_blocking=True), spec.rows)

    def _end_pipeline(self) -> None:
        """End DALI's threads, and only then release the mapped bytes that they read."""
        self._in_use.release_all()
        self._pipeline = None
        gc.collect()  # the pipeline's Python object has reference cycles
        self._in_flight.clear()
        self._returned = None

    def _run(self) -> torch.Tensor:
        assert self._pipeline is not None, "only while iterating"
        (output,) = self._pipeline.run()
        # DALI's dynamic executor does not reuse the buffer while the tensor exists.
        with self._options.device:
            images = torch.from_dlpack(output.as_tensor())
        if self._options.half:
            images = images.permute(0, 3, 1, 2)  # NHWC memory is channels_last NCHW
        return images

    def _next_inputs(self) -> Inputs:
        assert self._read_ahead is not None, "only while iterating"
        good = None
        while good is None:
            batch = self._repeated.popleft() if self._repeated else next(self._read_ahead)
            # The decoder of DALI 2.4 crashes the process if it cannot parse the header of one of
            # several images, because its threads still run when their batch is released.
            bad = [row for row in batch.bad_rows if row not in self._bad_rows]
            if bad:
                self._leave_out(bad)
            good = self._without_bad(batch) if self._bad_rows else batch
        inputs = self._inputs(good)
        self._in_flight.append((good, inputs))
        return inputs

    def _without_bad(self, batch: EncodedBatch) -> EncodedBatch | None:
        """The images of a batch that decode; None if there are none and the batch is skipped.

        Raises:
            UserError: there are none, and each step needs some.
        """
        rows = batch.spec.rows.tolist()
        good = [position for position, row in enumerate(rows) if row not in self._bad_rows]
        if not good:
            if self._skips_batches:
                return None
            names = [self.index.id(row) for row in rows]
            raise UserError(
                f"no image of a batch decodes: {first_few(names)}; "
                "check the archives, or make the index again with tools/index.py --verify"
            )
        return batch.take(np.array(good))

    def _recover(self, error: RuntimeError) -> None:
        """Find the images because of which the pipeline failed. Raise an error that names them, or
        start a new pipeline without them."""
        if is_out_of_memory(error):
            raise error
        failed = [batch for batch, _ in self._in_flight]
        self._end_pipeline()
        bad = sorted({row for batch in failed for row in self._undecodable(batch)})
        if not bad:
            raise error  # all images decode, so there is another cause
        self._leave_out(bad)
        self._repeated.extendleft(reversed(failed))
        self._pipeline = build_pipeline(self._next_inputs, self._options)

    def _leave_out(self, bad: list[int]) -> None:
        """Skip these rows from now on, or raise an error that names them."""
        names = [self.index.id(row) for row in bad]
        if self._options.config.on_error == "raise":
            raise UndecodableImages(
                f"{len(bad)} image(s) in {self.index.path} do not decode: {first_few(names)}; "
                "repair them, make the index again with tools/index.py --verify, "
                "or skip them with --data.on_error skip"
            ) from None
        for name in names:
            print(f"left out {name}: it does not decode", file=sys.stderr, flush=True)
        self.skipped += bad
        self._bad_rows.update(bad)

    def _undecodable(self, batch: EncodedBatch) -> list[int]:
        """Decode a batch one image at a time; returns the rows that fail. The CPU does it: a
        pipeline for each image takes long on a GPU."""
        single = (batch.take(np.array([position])) for position in range(len(batch.views)))
        return [int(image.spec.rows[0]) for image in single if not self._decodes(image)]

    def _decodes(self, image: EncodedBatch) -> bool:
        inputs = self._inputs(image)
        config = replace(self._options.config, decoder="cpu")
        options = replace(self._options, config=config, batch_size=1, device=torch.device("cpu"))
        pipeline = build_pipeline(lambda: inputs, options)
        try:
            pipeline.run()
        except RuntimeError:
            return False
        finally:
            del pipeline  # before the inputs that its threads read
            gc.collect()
        return True

    def _inputs(self, batch: EncodedBatch) -> Inputs:
        spec = batch.spec
        windows = (getattr(spec.windows, field.name) for field in fields(Windows))
        if self._options.has_arrays:
            return (batch.views, *windows, self.index.is_array[spec.rows])
        return (batch.views, *windows)


class TrainingLoader(Loader):
    """The loader of training, where each step needs images: a batch in which no image decodes is an
    error."""

    _skips_batches = False


def _check_arrays(index: Index, config: DataConfig) -> None:
    shape = (config.channels, config.crop_size, config.crop_size)
    rows = np.flatnonzero(index.is_array)
    sizes = np.stack([index.width[rows], index.height[rows]])
    if (sizes != config.crop_size).any() or (index.length[rows] != 4 * np.prod(shape)).any():
        raise UserError(
            f"{index.path}: its arrays are not of the shape {shape} (data.channels, "
            "data.crop_size); make them again with tools/adversarial.py and these options"
        )
