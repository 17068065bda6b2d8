"""Indexing archives and folders, and reading indices back."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import index, scan, verify
from pipeline.data.image_check import DECODABLE, NotDecodable, look
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.data.tar_members import tar_members
from pipeline.data.verify import undecodable_rows
from pipeline.errors import UserError
from tests.helpers.images import encode, picture, write_tar
from tests.helpers.in_process import in_process


def test_folder_tree(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "cat/b.png", "ant/deep/c.jpg"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        (tmp_path / "tree" / name).write_bytes(encode(picture(40, 50), kind))
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "tree" / "stray.jpg").write_bytes(encode(picture(9, 9), "JPEG"))
    done = in_process(
        "tools/index.py", "folder", tmp_path / "tree", "--out", tmp_path / "i.parquet"
    )
    assert done.returncode == 0, done.stderr
    tree_index = index.read(str(tmp_path / "i.parquet"))
    assert tree_index.class_names == ["ant", "cat"]
    pairs = {tree_index.id(k): int(tree_index.label[k]) for k in range(len(tree_index))}
    assert pairs == {"ant/deep/c.jpg": 0, "cat/a.jpg": 1, "cat/b.png": 1}
    assert "notes.txt" in done.stderr
    assert "stray.jpg" in done.stderr
    (tmp_path / "tree").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"--data\.root"):
        Files(tree_index).views(np.array([0]))
    moved = index.read(str(tmp_path / "i.parquet"), root=str(tmp_path / "moved"))
    (view,) = Files(moved).views(np.array([1]))
    assert view.tobytes() == encode(picture(40, 50), "JPEG")


def test_round_trip_and_fingerprint(photos: Index) -> None:
    again = index.read(photos.path)
    assert again.fingerprint == photos.fingerprint
    assert again.num_classes == 2
    assert photos.subset(None).tolist() == list(range(40))
    assert photos.subset(4).tolist() == [0, 13, 26, 39]


def test_bad_indices(tmp_path: Path, photos: Index) -> None:
    with pytest.raises(UserError, match=r"data\.val: no file .*tools/index\.py"):
        index.read(str(tmp_path / "none.parquet"), option="data.val")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(photos.path).read_bytes()[:-50])
    with pytest.raises(UserError, match=r"cut\.parquet cannot be read"):
        index.read(str(cut))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(UserError, match=r"not an index"):
        index.read(str(other))
    empty = tmp_path / "empty.parquet"
    index.write(empty, index.SCHEMA.empty_table(), tmp_path, ["a"])
    with pytest.raises(UserError, match="holds no images"):
        index.read(str(empty))


def test_labels_outside_the_net(photos: Index) -> None:
    index.check_labels(photos, 2)
    with pytest.raises(UserError, match=r"20 labels are outside the net's 1 classes, first b/001"):
        index.check_labels(photos, 1)


@pytest.mark.parametrize(("change", "comparison"), [(-600, "shorter"), (600, "longer")])
def test_changed_archive(tmp_path: Path, photos: Index, change: int, comparison: str) -> None:
    archive = photos.root / "photos.tar"
    data = archive.read_bytes()
    (tmp_path / "photos.tar").write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(UserError, match=rf"photos\.tar is {comparison} than its index"):
        Files(index.read(photos.path, root=str(tmp_path)))


def test_scan_forgets_members_as_it_goes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"c/{k}": b"x" for k in range(5)})
    assert [m.name for m in tar_members(path)] == [f"c/{k}" for k in range(5)]


@pytest.mark.slow
def test_verify_decodes_as_the_loader_does(tmp_path: Path) -> None:
    broken = bytearray(encode(picture(100, 100), "PNG"))
    middle = len(broken) // 2
    broken[middle : middle + 50] = bytes(50)
    members = {f"a/{k:03d}.png": bytes(broken) for k in range(40)}  # a whole batch
    members |= {f"b/{k:03d}.png": encode(picture(30, 20, k), "PNG") for k in range(40)}
    members["b/017.png"] = bytes(broken)
    path = write_tar(tmp_path / "x.tar", members)
    for options, number in ((), 80), (("--verify",), 39):
        done = in_process("tools/index.py", "tar", path, "--out", tmp_path / "i.parquet", *options)
        assert done.returncode == 0, done.stderr
        assert len(index.read(str(tmp_path / "i.parquet"))) == number
    assert "left out x.tar: a/007.png: does not decode\nleft out 33 more" in done.stderr
    assert "1 class has no images: a" in done.stderr


def test_formats_that_are_indexed_decode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for kind in sorted(DECODABLE | {"GIF", "ICO", "TGA"}):
        picture(40, 30).save(tmp_path / "a" / kind, kind)
    rows, classes = scan.scan_folder(tmp_path)
    assert {name for name, _ in rows.rejected} == {"a/GIF", "a/ICO", "a/TGA"}
    target = tmp_path / "i.parquet"
    index.write(target, rows.table(), tmp_path, classes)
    assert undecodable_rows(index.read(str(target)), threads=1) == []


def test_damaged_bytes_never_pass_unseen(tmp_path: Path, photos: Index) -> None:
    data, path = Path(photos.path).read_bytes(), tmp_path / "damaged.parquet"
    rng = np.random.default_rng(0)
    num_read = 0
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            read = index.read(str(path))
        except UserError:
            continue
        num_read += 1  # a byte of the file's metadata that nothing depends on
        assert read.fingerprint == photos.fingerprint
        assert len(read.classes) == 2
    assert num_read < 100


def test_links_are_named_where_they_are_left_out(tmp_path: Path) -> None:
    folder, tar = tmp_path / "images", tmp_path / "x.tar"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(encode(picture(40, 30), "PNG"))
    (folder / "a" / "hard.png").hardlink_to(folder / "a" / "1.png")
    (folder / "b" / "soft.png").symlink_to("1.png")
    with tarfile.open(tar, "w") as archive:
        archive.add(folder, "")
    rows, _ = scan.scan_tar(tar)
    assert len(rows) == 2
    assert {name for name, _ in rows.rejected} <= {
        *("x.tar: a/hard.png", "x.tar: a/1.png", "x.tar: b/soft.png")
    }
    assert len(rows.rejected) == 2
    (folder / "b" / "broken.png").symlink_to("nothing.png")
    (folder / "c").mkdir()
    (folder / "c" / "broken.png").symlink_to("nothing.png")
    rows, _ = scan.scan_folder(folder)
    assert len(rows) == 4
    assert {name for name, _ in rows.rejected} == {"b/broken.png", "c/broken.png"}


def test_a_folder_that_cannot_be_read_is_no_empty_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encode(picture(40, 30), "PNG"))
    scandir = os.scandir

    def refuse_b(path: str) -> object:  # as for a user who is not root
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_b)
    with pytest.raises(UserError, match=r"/b cannot be read \(Permission denied\)"):
        scan.scan_folder(tmp_path)


@pytest.mark.parametrize("kind", ["BMP", "PPM", "JPEG2000", "TIFF", "WEBP", "PNG", "JPEG"])
def test_cut_files_are_left_out(tmp_path: Path, kind: str) -> None:
    encoded = encode(picture(40, 30), kind)
    path = tmp_path / "image"
    path.write_bytes(encoded)
    with path.open("rb") as file:
        assert look(file, 0, len(encoded))[:2] == (40, 30)
        with pytest.raises(NotDecodable):
            look(file, 0, len(encoded) // 2)


def test_a_long_file_that_is_no_image_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "video"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    lengths: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        lengths.append(length)
        return pread(descriptor, min(length, 2**20), offset)

    monkeypatch.setattr(os, "pread", counted)
    with path.open("rb") as file, pytest.raises(NotDecodable, match="not an image"):
        look(file, 0, 2**40)
    assert max(lengths) <= 2**26


def test_large_images_are_verified_in_small_batches() -> None:
    pixels = np.array([2**25, 1, 2**24, 2**24, 2**26, *([1] * 40)])
    groups = [rows.tolist() for rows in verify._groups(pixels)]
    assert groups == [[0], [1, 2], [3], [4], [*range(5, 37)], [*range(37, 45)]]


def test_an_archive_that_changed_is_not_joined(tmp_path: Path) -> None:
    for name in ("a", "b"):
        path = write_tar(tmp_path / f"{name}.tar", {"c/1.png": encode(picture(40, 30), "PNG")})
        rows, classes = scan.scan_tar(path)
        target = tmp_path / f"{name}.parquet"
        index.write(target, rows.table(), tmp_path, classes, {path.name: path})
    with (tmp_path / "b.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=r"b\.tar has another size than when .*b\.parquet was made"):
        index.join([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "c.parquet")
