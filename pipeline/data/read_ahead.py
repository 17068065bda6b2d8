"""Encoded batches, read from disk and checked in a thread, ahead of their use.

In: a stream of `BatchSpec`s and the files of an index. Out: `EncodedBatch`es, in the same order.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.data import image_headers
from pipeline.data.mapped_files import Files
from pipeline.data.plan import BatchSpec

# Batches whose bytes are requested from the disk before the headers of the first one are read.
_REQUESTED = 2
# Batches whose headers are read before the first one is used.
_CHECKED = 2


@dataclass(frozen=True)
class EncodedBatch:
    """The encoded bytes of a batch's images."""

    spec: BatchSpec
    views: list[np.ndarray]  # the bytes of each image, uint8
    bad_rows: list[int]  # rows whose header cannot be read, or has another size than the index

    def take(self, positions: np.ndarray) -> "EncodedBatch":
        """The images at these positions of the batch."""
        views = [self.views[position] for position in positions.tolist()]
        return EncodedBatch(self.spec.take(positions), views, self.bad_rows)


class ReadAhead:
    """Reads batches in a thread of its own, a few batches ahead.

    An exception of the stream or of a file is raised where its batch would have been returned.
    """

    def __init__(self, specs: Iterator[BatchSpec], files: Files) -> None:
        """Start nothing yet; the first ``next`` does.

        Args:
            specs: the batches; only the thread advances this iterator.
            files: the bytes of the images; only the thread uses this object.
        """
        self._specs = specs
        self._files = files
        # One thread: it makes the order of the batches that of the stream.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._requested: deque[Future[BatchSpec | None]] = deque()
        self._checked: deque[Future[EncodedBatch | None]] = deque()

    def __next__(self) -> EncodedBatch:
        """The next batch.

        Raises:
            StopIteration: there is none.
            UserError: a file is missing or cannot be read.
        """
        while len(self._checked) <= _CHECKED:
            self._submit()
        batch = self._checked.popleft().result()
        if batch is None:
            raise StopIteration
        return batch

    def __iter__(self) -> "ReadAhead":
        return self

    def close(self) -> None:
        """End the thread, after the batch that it is reading."""
        self._thread.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        while len(self._requested) <= _REQUESTED:
            self._requested.append(self._thread.submit(self._request))
        self._checked.append(self._thread.submit(self._check, self._requested.popleft()))

    def _request(self) -> BatchSpec | None:
        spec = next(self._specs, None)
        if spec is not None:
            self._files.request(spec.rows)
        return spec

    def _check(self, requested: Future[BatchSpec | None]) -> EncodedBatch | None:
        spec = requested.result()  # done: this thread did it earlier
        if spec is None:
            return None
        views = self._files.views(spec.rows)
        self._files.read_heads(spec.rows)
        index = self._files.index
        bad_rows = [
            row
            for row, view in zip(spec.rows.tolist(), views, strict=True)
            if not index.is_array[row]
            and image_headers.size(view) != (index.width[row], index.height[row])
        ]
        return EncodedBatch(spec, views, bad_rows)
