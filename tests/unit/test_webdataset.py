"""WebDataset shards: which members make a sample, the shards' order, what is read of them."""

import json
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import index
from pipeline.data.mapped_files import Files
from pipeline.data.shards import list_shards
from pipeline.data.verify import undecodable_rows
from pipeline.data.webdataset import Shards, scan_shards
from pipeline.errors import UserError
from tests.helpers.images import encode, picture, write_tar

JPEG = encode(picture(9, 8), "JPEG")


def scan(path: Path, **options: str) -> dict[str, int]:
    """The label of each id in the index of one shard."""
    rows, _ = scan_shards(Shards([path], **options))
    return dict(zip(rows.columns["id"], rows.columns["label"], strict=True))


def test_members_of_samples(tmp_path: Path) -> None:
    members = {
        "a.b/0.cls": b" 3\r\n",
        "a.b/0.webp": encode(picture(9, 8), "WEBP"),
        "a.b/0.JSON": b'{"label": 7, "class": "4", "text": "\xc3\xa4"}',
        "./1.PNG": encode(picture(9, 8), "PNG"),
        "1.txt": b"a caption",
        "./1.json": json.dumps({"label": 0, "class": 1}).encode(),
        "1.depth.png": encode(picture(9, 8), "PNG"),
        ".cls": b"no key",
    }
    path = write_tar(tmp_path / "x.tar", members)
    assert scan(path) == {"x/a.b/0": 3, "x/1": 0}
    assert scan(path, label_key="class") == {"x/a.b/0": 4, "x/1": 1}
    rows, classes = scan_shards(Shards([path]))
    assert [name for name, _ in rows.rejected] == ["x.tar: 1.depth.png"]
    index.write(tmp_path / "x.parquet", rows.table(), tmp_path, classes, {"x.tar": path})
    assert undecodable_rows(index.read(str(tmp_path / "x.parquet")), threads=1) == []


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.cls": b"0", "1.cls": b"2", "1.jpg": JPEG})
    rows, classes = scan_shards(Shards([path]))
    assert (rows.columns["label"], classes.ids) == ([2], ["0", "1", "2"])
    assert rows.rejected == [("x.tar: 0", "no image")]
    assert rows.empty_classes(classes) == ["0", "1"]


def test_the_order_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["b-2.tar", "b-10.tar", "b-100.tar", "a9.tar", "a[1].tar"]
    for name in names:
        Path(name).touch()

    def listed(*patterns: str) -> list[str]:
        return [path.name for path in list_shards(list(patterns), "webdataset")]

    assert listed("b-*.tar") == ["b-2.tar", "b-10.tar", "b-100.tar"]
    assert listed("b-10?.tar", "a9.tar", str(tmp_path / "b-2.tar")) == [
        *("a9.tar", "b-2.tar", "b-100.tar")
    ]
    assert listed("a[1].tar") == ["a[1].tar"]
    assert listed("x-{098..101}.tar") == [f"x-{k}.tar" for k in ("098", "099", "100", "101")]
    assert listed("{0..1}/b{7..8}") == ["b7", "b8", "b7", "b8"]
    with pytest.raises(UserError, match=r"the range \{5\.\.0\} is empty"):
        listed("x-{5..0}.tar")


def test_only_headers_and_labels_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    photo = encode(Image.fromarray(noise), "PNG")
    members = {}
    for k in range(20):
        members |= {f"{k}.cls": b"0", f"{k}.png": photo, f"{k}.npy": bytes(500_000)}
    path = write_tar(tmp_path / "x.tar", members)
    before = bytes_read()
    assert len(scan(path)) == 20
    assert 20_000 < bytes_read() - before < path.stat().st_size / 10


def bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("end", ["member", "padding", "end mark", "label"])
def test_truncated_shards(tmp_path: Path, end: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.jpg": JPEG, "0.cls": b"0", "1.jpg": JPEG})
    assert scan(write_tar(tmp_path / "y.tar", {"0.jpg": JPEG, "0.cls": b"0"})) == {"y/0": 0}
    block = 512
    image = block + math.ceil(len(JPEG) / block) * block
    sizes = {
        "member": block + len(JPEG) - 1,
        "padding": block + len(JPEG),
        "label": image + block + 1,
        "end mark": image + 2 * block,
    }
    os.truncate(path, sizes[end])
    with pytest.raises(UserError, match=r"x\.tar .*(download is not|is the download) complete"):
        scan(path)


@pytest.fixture
def few_files() -> Iterator[None]:
    """A low limit of open files, which a process may raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def index_shards(folder: Path) -> index.Index:
    shards = [
        write_tar(folder / f"{k}.tar", {f"{k}.cls": b"0", f"{k}.jpg": JPEG}) for k in range(30)
    ]
    listed = Shards(shards)
    rows, classes = scan_shards(listed)
    index.write(folder / "x.parquet", rows.table(), folder, classes, listed.archives)
    return index.read(str(folder / "x.parquet"))


def test_more_shards_than_the_limit_of_open_files(tmp_path: Path, few_files: None) -> None:
    files = Files(index_shards(tmp_path))
    assert [view.tobytes() for view in files.views(np.arange(30))] == [JPEG] * 30


def test_a_limit_that_cannot_be_raised(
    tmp_path: Path, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime.machine.allow_open_files", lambda number: None)
    with pytest.raises(UserError, match=r"x\.parquet has 30 archives, .*: ulimit -n 572"):
        Files(index_shards(tmp_path))
