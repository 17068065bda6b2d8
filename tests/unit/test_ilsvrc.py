"""Indexing ILSVRC's archives as they are downloaded."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat, savemat

from pipeline.data import ilsvrc as ilsvrc_archives
from pipeline.data import index
from pipeline.data.index import Index
from pipeline.data.mapped_files import Files
from pipeline.errors import UserError
from tests.helpers.images import encode, picture, write_tar
from tests.helpers.in_process import in_process

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
    return write_tar(path, members)


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


def index_ilsvrc(folder: Path, *more: str) -> tuple[Index, Index, str]:
    done = in_process(
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


def test_ilsvrc_archives_as_downloaded(ilsvrc: Path) -> None:
    train, val, output = index_ilsvrc(ilsvrc, "--partial")
    # n03 is the kit's number 1 but the last of the sorted ids: labels 2, 0, 1.
    assert val.label.tolist() == [2, 0, 1]
    assert [val.id(k) for k in range(3)] == [f"ILSVRC2012_val_{k:08d}.JPEG" for k in (1, 2, 3)]
    assert train.class_names == ["n01 thing", "n02 thing", "n03 thing"]
    assert train.classes.ids == val.classes.ids == ["n01", "n02", "n03"]
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


def test_bytes_of_nested_members(ilsvrc: Path) -> None:
    train, _, _ = index_ilsvrc(ilsvrc, "--partial", "--verify")
    rows = {train.id(row): row for row in range(len(train))}
    wanted = rows["n03/n03_2.JPEG"]
    (view,) = Files(train).views(np.array([wanted]))
    assert view.tobytes() == encode(picture(30, 30, 2), "JPEG")


def test_a_link_to_an_archive(ilsvrc: Path) -> None:
    """The index names the link; its target may have another name, in another folder."""
    (ilsvrc / "links").mkdir()
    for name in ("train.tar", "val.tar", "kit.tar.gz"):
        (ilsvrc / "links" / name).symlink_to(ilsvrc / f"blob-{name}")
        (ilsvrc / name).rename(ilsvrc / f"blob-{name}")
    _, val, _ = index_ilsvrc(ilsvrc / "links", "--partial")
    (view,) = Files(val).views(np.array([1]))
    assert view.tobytes() == encode(picture(22, 30, 2), "JPEG")


def test_the_test_images_have_no_labels(ilsvrc: Path) -> None:
    """They are numbered as the validation images are."""
    photo = encode(picture(20, 30), "JPEG")
    members = {f"test/ILSVRC2012_test_{k:08d}.JPEG": photo for k in (1, 2)}
    scanned = ilsvrc_archives.scan_ilsvrc_val(write_tar(ilsvrc / "test.tar", members), [1, 2, 3])
    assert len(scanned) == 0
    assert len(scanned.rejected) == 2


def test_counts_are_checked(ilsvrc: Path) -> None:
    done = in_process(
        "tools/index.py",
        *("ilsvrc", "--val", ilsvrc / "val.tar", "--devkit", ilsvrc / "kit.tar.gz"),
        *("--out", ilsvrc / "out"),
    )
    assert done.returncode == 2
    assert "val: 3 images, ILSVRC-2012 has 50,000" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ilsvrc / "out").exists()


def test_archive_cut_short(ilsvrc: Path) -> None:
    os.truncate(ilsvrc / "train.tar", os.path.getsize(ilsvrc / "train.tar") // 2)
    with pytest.raises(UserError, match=r"train\.tar.*(not complete|complete\?)"):
        ilsvrc_archives.scan_ilsvrc_train(ilsvrc / "train.tar", dict.fromkeys(WNIDS, 0))


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
    train = ilsvrc_archives.scan_ilsvrc_train(folder / "ILSVRC2012_img_train.tar", labels)
    assert len(train) == 350
    assert not train.rejected
    pairs = zip(train.columns["id"], train.columns["label"], strict=True)
    assert all(leaves[label] == name.split("/")[0] for name, label in pairs)
