"""Reading ahead: same batches and errors in the same order, and no thread that stays."""

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data import image_headers, index, scan
from pipeline.data.batches import evaluation_specs
from pipeline.data.index import Index
from pipeline.data.loader import Loader
from pipeline.data.mapped_files import Files
from pipeline.data.plan import BatchSpec
from pipeline.data.read_ahead import ReadAhead
from pipeline.errors import UserError
from tests.helpers.images import broken_archive, encode, picture

CPU = torch.device("cpu")
CONFIG = DataConfig()
SKIP = dataclasses.replace(CONFIG, on_error="skip")


def specs_of(images: Index, rows: np.ndarray, size: int = 4) -> Iterator[BatchSpec]:
    return iter(evaluation_specs(images, rows, CONFIG, size))


def load(images: Index, specs: Iterator[BatchSpec], config: DataConfig = CONFIG) -> Loader:
    return Loader(images, specs, config, CPU, 4, threads=2)


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def folder_index(folder: Path, num_images: int = 24) -> Index:
    (folder / "tree" / "c").mkdir(parents=True)
    for k in range(num_images):
        (folder / "tree" / "c" / f"{k:02d}.jpg").write_bytes(encode(picture(50, 40, k), "JPEG"))
    rows, classes = scan.scan_folder(folder / "tree")
    index.write(folder / "tree.parquet", rows.table(), folder / "tree", classes)
    return index.read(str(folder / "tree.parquet"))


def test_batches_are_those_of_the_stream(photos: Index) -> None:
    rows = np.random.default_rng(0).permutation(np.tile(np.arange(40), 3))
    read_ahead = ReadAhead(specs_of(photos, rows), Files(photos))
    batches = list(read_ahead)
    assert np.concatenate([batch.spec.rows for batch in batches]).tolist() == rows.tolist()
    views = [view.tobytes() for batch in batches for view in batch.views]
    assert views == [view.tobytes() for view in Files(photos).views(rows)]
    assert not any(batch.bad_rows for batch in batches)
    with pytest.raises(StopIteration):  # again and again, as an iterator does
        next(read_ahead)
    read_ahead.close()


def test_an_endless_stream_is_read_a_few_batches_ahead(photos: Index) -> None:
    number_read = itertools.count()
    specs = (next(specs_of(photos, np.array([next(number_read) % 40]))) for _ in itertools.count())
    read_ahead = ReadAhead(specs, Files(photos))
    for number in range(30):
        assert next(read_ahead).spec.rows.tolist() == [number % 40]
    read_ahead._thread.submit(lambda: None).result()  # after what it has to read
    read_ahead.close()
    assert next(number_read) == 30 + 2 + 2, "two checked, two requested"


def test_headers_are_read_in_another_thread(photos: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = set()
    size = image_headers.size

    def recorded(encoded: np.ndarray) -> tuple[int, int] | None:
        readers.add(threading.current_thread())
        return size(encoded)

    monkeypatch.setattr(image_headers, "size", recorded)
    assert len(list(load(photos, specs_of(photos, np.arange(40))))) == 10
    assert len(readers) == 1
    assert threading.main_thread() not in readers


def test_bytes_are_requested_before_headers_are_read(
    photos: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested, read = [], []
    monkeypatch.setattr(Files, "request", lambda _, rows: requested.extend(rows.tolist()))
    monkeypatch.setattr(
        Files, "read_heads", lambda _, rows: read.append((rows.tolist(), len(requested)))
    )
    list(load(photos, specs_of(photos, np.arange(40))))
    assert requested == list(range(40))
    for rows, num_requested in read[:-3]:
        assert num_requested >= rows[-1] + 1 + 2 * 4, "two more batches"


def test_an_error_of_the_stream_comes_at_its_batch(photos: Index) -> None:
    def failing() -> Iterator[BatchSpec]:
        yield from specs_of(photos, np.arange(12))
        raise UserError("no more")

    read_ahead = ReadAhead(failing(), Files(photos))
    assert [next(read_ahead).spec.rows[0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(UserError, match="no more"):
        next(read_ahead)
    read_ahead.close()


def test_a_missing_file_is_reported_at_its_batch(tmp_path: Path) -> None:
    images = folder_index(tmp_path)
    (tmp_path / "tree" / "c" / "09.jpg").unlink()
    read_ahead = ReadAhead(specs_of(images, np.arange(24)), Files(images))
    assert [next(read_ahead).spec.rows[0] for _ in range(2)] == [0, 4]
    with pytest.raises(UserError, match=r"no file .*c/09\.jpg.*--data\.root"):
        next(read_ahead)
    read_ahead.close()
    with pytest.raises(UserError, match=r"no file .*c/09\.jpg"):
        list(load(images, specs_of(images, np.arange(24))))


def test_files_of_a_folder_are_not_kept_open(tmp_path: Path) -> None:
    images = folder_index(tmp_path)
    read_ahead = ReadAhead(specs_of(images, np.arange(24)), Files(images))
    batches = list(read_ahead)
    is_open = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert [path for path in is_open if path.startswith(str(tmp_path))] == []
    assert batches[2].views[1].tobytes() == encode(picture(50, 40, 9), "JPEG")
    read_ahead.close()


def test_files_of_a_folder_that_became_shorter(tmp_path: Path) -> None:
    images = folder_index(tmp_path, 3)
    (tmp_path / "tree" / "c" / "01.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"c/01\.jpg is shorter than its index"):
        Files(images).views(np.arange(3))


def test_a_request_that_fails_is_ignored(photos: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert len(list(load(photos, specs_of(photos, np.arange(8))))) == 2


def test_an_archive_that_cannot_be_read_is_named(
    photos: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UserError, match=r"photos\.tar cannot be read: .*Input/output error"):
        list(load(photos, specs_of(photos, np.arange(8))))


@pytest.mark.parametrize("keep", [0, 700], ids=["no header", "a header alone"])
def test_order_stays_where_images_are_skipped(tmp_path: Path, keep: int) -> None:
    """With a header alone, DALI fails while later batches are read; a new pipeline follows."""
    images = broken_archive(tmp_path, keep)
    rows = np.tile(np.arange(30), 3)
    loader = load(images, specs_of(images, rows), SKIP)
    returned = np.concatenate([batch.rows for batch in loader])
    assert returned.tolist() == [row for row in rows.tolist() if row not in (11, 20)]
    assert loader.skipped == [11, 20]


def test_no_thread_stays_after_the_last_batch(photos: Index) -> None:
    list(load(photos, specs_of(photos, np.arange(40))))
    assert reading_threads() == []


def test_no_thread_stays_after_an_error(tmp_path: Path) -> None:
    images = broken_archive(tmp_path)
    with pytest.raises(UserError, match=r"c/11\.jpg"):
        list(load(images, specs_of(images, np.arange(30))))
    assert reading_threads() == []


def test_no_thread_stays_of_an_iterator_that_is_left(
    photos: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "read_heads", lambda *_: time.sleep(0.1))  # still reading then
    batches = iter(load(photos, specs_of(photos, np.tile(np.arange(40), 9))))
    next(batches)
    assert len(reading_threads()) == 1
    del batches
    assert reading_threads() == []
