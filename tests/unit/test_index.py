"""Indexing archives and folders, and reading indices back."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat, savemat

from pipeline.data import index, scan
from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes, difference, shifted_name
from pipeline.data.convert import write_tar as write_arrays
from pipeline.data.image_check import DECODABLE
from pipeline.data.index import Index
from pipeline.data.index_format import METADATA_KEY
from pipeline.data.mapped_files import Files
from pipeline.data.verify import undecodable_rows
from pipeline.errors import UserError
from tests.helpers.images import encode, picture, write_tar
from tests.helpers.runs import Run

WNIDS = ["n03", "n01", "n02"]  # in the kit's order: number k+1 is WNIDS[k]


def write_kit(path: Path, truth: list[int]) -> Path:
    """A development kit with three leaves and one inner node, whose numbers are not sorted."""
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
    """ILSVRC in the layout of the downloads, with all irregularities of the real data."""
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


def test_indices_and_classes_of_older_versions(tmp_path: Path, photos: Index) -> None:
    table = pq.read_table(photos.path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    assert metadata["class_ids"] == ["a", "b"]
    del metadata["class_ids"]
    old = tmp_path / "old.parquet"
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), old)
    read = index.read(str(old))
    assert read.classes == Classes(["a", "b"], None)
    assert read.fingerprint == photos.fingerprint
    assert difference(read.classes, photos.classes) == ""


def test_where_classes_differ() -> None:
    ids = Classes(["tench", "goldfish"], ["n1", "n2"])
    assert difference(Classes(["n1", "n2"], ["n1", "n2"]), ids) == ""
    assert difference(Classes(["n1", "n2"]), ids) == ""  # made before ids were recorded
    assert difference(Classes(["tench", "goldfish"]), ids) == ""
    assert difference(Classes(["tench", "goldfish"], ["n2", "n1"]), ids) == (
        "label 0 is 'n2', not 'n1'"
    )
    assert difference(Classes(["n2"], ["n2"]), ids) == (
        "label 0 is 'n2', not 'n1'; 1 classes, not 2; missing: 'n1'"
    )


def test_names_of_torchvision_are_evidence_only_where_most_are_elsewhere() -> None:
    categories = ["tench", "goldfish", "crane", "hen", "crane"]
    assert shifted_name(Classes(["tench", "gold fish", "crane", "hen"]), categories) == ""
    assert shifted_name(Classes(["n1", "n2"]), categories) == ""
    assert shifted_name(Classes(["goldfish", "crane", "hen"]), categories) == (
        "'goldfish' is label 0 of the index and output 1 of the net"
    )


def test_a_list_of_classes_fixes_the_labels(tmp_path: Path) -> None:
    for name in ("great white shark", "hen"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "x.jpg").write_bytes(encode(picture(9, 9), "JPEG"))
    path = tmp_path / "classes.txt"

    def labels(text: str) -> tuple[dict[str, int], Classes]:
        path.write_text(text)
        rows, classes = scan.scan_folder(
            tmp_path / "tree", read_classes=lambda folders: read_class_list(path, folders)
        )
        return dict(zip(rows.columns["id"], rows.columns["label"], strict=True)), classes

    expected = {"great white shark/x.jpg": 1, "hen/x.jpg": 2}
    found, classes = labels("tench\ngreat white shark\nhen\n")
    assert (found, classes.ids) == (expected, ["tench", "great white shark", "hen"])
    found, classes = labels("n1\ttench fish\ngreat white shark\thai\n\nhen\tHuhn\n")
    assert (found, classes.names) == (expected, ["tench fish", "hai", "Huhn"])
    (tmp_path / "tree" / "great white shark").rename(tmp_path / "tree" / "n2")
    found, classes = labels("n1 tench, Tinca tinca\nn2 shark, hai\nhen\n")
    assert (found, classes.ids) == ({"n2/x.jpg": 1, "hen/x.jpg": 2}, ["n1", "n2", "hen"])
    assert classes.names[0] == "tench, Tinca tinca"


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "all" / "n1").mkdir(parents=True)
    (tmp_path / "all" / "n1" / "x.jpg").write_bytes(encode(picture(9, 9), "JPEG"))
    (tmp_path / "part" / "n1").parent.mkdir()
    (tmp_path / "part" / "n1").symlink_to("../all/n1")
    (tmp_path / "all" / "n1" / "loop").symlink_to("../../part")
    rows, classes = scan.scan_folder(tmp_path / "part")
    assert (rows.columns["id"], classes.ids) == (["n1/x.jpg"], ["n1"])


def test_classes_without_images_of_a_tar_and_of_packed_arrays(tmp_path: Path) -> None:
    digits = np.zeros((2, 4, 4), np.uint8)
    write_arrays(tmp_path / "x.tar", digits, [0, 2], ["0", "1", "2"])
    rows, classes = scan.scan_tar(tmp_path / "x.tar")
    assert rows.columns["label"] == [0, 2]
    assert rows.empty_classes(classes) == ["1"]


@pytest.mark.slow
def test_verify_decodes_as_the_loader_does(run: Run, tmp_path: Path) -> None:
    broken = bytearray(encode(picture(100, 100), "PNG"))
    middle = len(broken) // 2
    broken[middle : middle + 50] = bytes(50)
    members = {f"a/{k:03d}.png": bytes(broken) for k in range(40)}  # a whole batch
    members |= {f"b/{k:03d}.png": encode(picture(30, 20, k), "PNG") for k in range(40)}
    members["b/017.png"] = bytes(broken)
    path = write_tar(tmp_path / "x.tar", members)
    for options, number in ((), 80), (("--verify",), 39):
        done = run("tools/index.py", "tar", path, "--out", tmp_path / "i.parquet", *options)
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
