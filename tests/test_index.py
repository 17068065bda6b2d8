"""Indexing archives and folders, and reading indices back."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat, savemat

from pipeline.data import index, scan
from pipeline.data.files import Files
from pipeline.data.index import Index
from pipeline.errors import UserError
from tests.images import encode, picture, write_tar
from tests.runs import Run

WNIDS = ["n03", "n01", "n02"]  # in the kit's order: number k+1 is WNIDS[k]


def write_kit(path: Path, truth: list[int]) -> Path:
    """A development kit of three leaves and one inner node, numbered in an order of its own."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(k + 1, wnid, f"{wnid} thing, other", 0) for k, wnid in enumerate(WNIDS)]
    synsets = np.array([*rows, (4, "n00", "inner", 3)], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    members = {
        "kit/data/meta.mat": meta.getvalue(),
        "kit/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode(),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """ILSVRC in the layout of the downloads, with every oddity of the real one."""
    odd = {
        "n01_1.JPEG": encode(picture(50, 40), "JPEG"),
        "n01_2.JPEG": encode(picture(60, 40), "PNG"),
        "n01_3.JPEG": encode(picture(70, 40).convert("CMYK"), "JPEG"),
        "n01_4.JPEG": encode(picture(80, 40).convert("L"), "JPEG"),
        "n01_5.JPEG": b"no image at all",
        "n01_6.JPEG": encode(picture(90, 90), "JPEG")[:-400],
        "n01_7.JPEG": encode(picture(95, 90), "JPEG") + b"\0" * 500,
    }
    inner = {"n01.tar": odd}
    for wnid in ("n03", "n02"):
        inner[f"{wnid}.tar"] = {
            f"{wnid}_{k}.JPEG": encode(picture(30, 30, k), "JPEG") for k in (1, 2)
        }
    outer = {}
    for name, members in inner.items():
        outer[name] = write_tar(tmp_path / "inner.tar", members).read_bytes()
    write_tar(tmp_path / "train.tar", outer)
    val = {
        f"ILSVRC2012_val_{k:08d}.JPEG": encode(picture(20 + k, 30, k), "JPEG") for k in (1, 2, 3)
    }
    write_tar(tmp_path / "val.tar", val)
    write_kit(tmp_path / "kit.tar.gz", truth=[1, 2, 3])
    return tmp_path


def index_ilsvrc(run: Run, folder: Path, *more: str) -> tuple[Index, Index, str]:
    done = run(
        "tools/index.py",
        *("ilsvrc", "--train", folder / "train.tar", "--val", folder / "val.tar"),
        *("--devkit", folder / "kit.tar.gz", "--out", folder / "out", *more),
    )
    assert done.returncode == 0, done.stderr
    out = folder / "out"
    return (
        index.read(str(out / "train.parquet")),
        index.read(str(out / "val.parquet")),
        done.stdout + done.stderr,
    )


def test_ilsvrc_archives_as_downloaded(run: Run, ilsvrc: Path) -> None:
    train, val, output = index_ilsvrc(run, ilsvrc, "--partial")
    # n03 is the kit's number 1 but the last of the sorted ids: labels 2, 0, 1.
    assert val.label.tolist() == [2, 0, 1]
    assert [val.id(k) for k in range(3)] == [f"ILSVRC2012_val_{k:08d}.JPEG" for k in (1, 2, 3)]
    assert train.class_names == ["n01 thing", "n02 thing", "n03 thing"]
    by_id = {train.id(row): row for row in range(len(train))}
    assert train.label[by_id["n02/n02_1.JPEG"]] == 1
    table = pq.read_table(train.path).to_pylist()
    kinds = {row["id"]: (row["format"], row["mode"], row["width"]) for row in table}
    assert kinds["n01/n01_2.JPEG"] == ("PNG", "RGB", 60)
    assert kinds["n01/n01_3.JPEG"] == ("JPEG", "CMYK", 70)
    assert kinds["n01/n01_4.JPEG"] == ("JPEG", "L", 80)
    assert kinds["n01/n01_7.JPEG"] == ("JPEG", "RGB", 95)  # padded, not cut
    for broken in ("n01/n01_5.JPEG", "n01/n01_6.JPEG"):
        assert broken not in by_id
        assert broken in output
    assert len(train) == 5 + 4


def test_bytes_of_nested_members(run: Run, ilsvrc: Path) -> None:
    train, _, _ = index_ilsvrc(run, ilsvrc, "--partial", "--verify")
    rows = {train.id(row): row for row in range(len(train))}
    wanted = rows["n03/n03_2.JPEG"]
    (view,) = Files(train).views(np.array([wanted]))
    assert view.tobytes() == encode(picture(30, 30, 2), "JPEG")


def test_counts_are_checked(run: Run, ilsvrc: Path) -> None:
    done = run(
        "tools/index.py",
        *("ilsvrc", "--val", ilsvrc / "val.tar", "--devkit", ilsvrc / "kit.tar.gz"),
        *("--out", ilsvrc / "out"),
    )
    assert done.returncode == 2
    assert "val: 3 images, ILSVRC-2012 has 50,000" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ilsvrc / "out").exists()


def test_archive_cut_short(run: Run, ilsvrc: Path) -> None:
    os.truncate(ilsvrc / "train.tar", os.path.getsize(ilsvrc / "train.tar") // 2)
    with pytest.raises(UserError, match=r"train\.tar.*(not complete|complete\?)"):
        scan.scan_ilsvrc_train(ilsvrc / "train.tar", dict.fromkeys(WNIDS, 0))


def test_real_ilsvrc_labels(real_data: Path, ilsvrc_val: Path) -> None:
    folder = real_data / "ilsvrc-mini"
    val = index.read(str(ilsvrc_val))
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        files = {Path(m.name).name: kit.extractfile(m).read() for m in kit if m.isfile()}
    synsets = loadmat(io.BytesIO(files["meta.mat"]))["synsets"][:, 0]
    wnid_of = {int(s["ILSVRC2012_ID"][0, 0]): str(s["WNID"][0]) for s in synsets}
    leaves = sorted(str(s["WNID"][0]) for s in synsets if int(s["num_children"][0, 0]) == 0)
    numbers = [int(x) for x in files["ILSVRC2012_validation_ground_truth.txt"].split()]
    assert len(val) == 150
    for row in range(len(val)):
        number = int(val.id(row).split("_")[-1].split(".")[0])
        assert leaves[val.label[row]] == wnid_of[numbers[number - 1]]
    assert numbers != (val.label + 1).tolist()
    labels = {wnid: label for label, wnid in enumerate(leaves)}
    train = scan.scan_ilsvrc_train(folder / "ILSVRC2012_img_train.tar", labels)
    assert len(train) == 350
    assert not train.rejected
    pairs = zip(train.columns["id"], train.columns["label"], strict=True)
    assert all(leaves[label] == name.split("/")[0] for name, label in pairs)


def test_folder_tree(run: Run, tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "cat/b.png", "ant/deep/c.jpg"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        (tmp_path / "tree" / name).write_bytes(encode(picture(40, 50), kind))
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "tree" / "stray.jpg").write_bytes(encode(picture(9, 9), "JPEG"))
    done = run("tools/index.py", "folder", tmp_path / "tree", "--out", tmp_path / "i.parquet")
    assert done.returncode == 0, done.stderr
    found = index.read(str(tmp_path / "i.parquet"))
    assert found.class_names == ["ant", "cat"]
    pairs = {found.id(k): int(found.label[k]) for k in range(len(found))}
    assert pairs == {"ant/deep/c.jpg": 0, "cat/a.jpg": 1, "cat/b.png": 1}
    assert "notes.txt" in done.stderr
    assert "stray.jpg" in done.stderr
    (tmp_path / "tree").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"--data\.root"):
        Files(found).views(np.array([0]))
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
    with pytest.raises(UserError, match=r"no index"):
        index.read(str(other))
    empty = tmp_path / "empty.parquet"
    index.write(empty, index.SCHEMA.empty_table(), tmp_path, ["a"])
    with pytest.raises(UserError, match="holds no images"):
        index.read(str(empty))


def test_labels_outside_the_net(photos: Index) -> None:
    index.check_labels(photos, 2)
    with pytest.raises(UserError, match=r"20 labels lie outside the net's 1 classes, first b/001"):
        index.check_labels(photos, 1)


@pytest.mark.parametrize(("change", "word"), [(-600, "shorter"), (600, "longer")])
def test_changed_archive(tmp_path: Path, photos: Index, change: int, word: str) -> None:
    archive = photos.root / "photos.tar"
    data = archive.read_bytes()
    (tmp_path / "photos.tar").write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(UserError, match=rf"photos\.tar is {word} than its index"):
        Files(index.read(photos.path, root=str(tmp_path)))


def test_scan_forgets_members_as_it_goes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"c/{k}": b"x" for k in range(5)})
    assert [m.name for m in scan.tar_members(path)] == [f"c/{k}" for k in range(5)]
