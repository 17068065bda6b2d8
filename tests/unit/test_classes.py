"""Classes of indices: their order, lists of classes, differences between indices."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.data import index, scan
from pipeline.data.class_list import read_class_list
from pipeline.data.classes import Classes, describe_label_shift, difference
from pipeline.data.convert import write_tar as write_arrays
from pipeline.data.index import Index
from pipeline.data.index_format import METADATA_KEY
from tests.helpers.images import encode, picture


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
    assert describe_label_shift(Classes(["tench", "gold fish", "crane", "hen"]), categories) == ""
    assert describe_label_shift(Classes(["n1", "n2"]), categories) == ""
    assert describe_label_shift(Classes(["goldfish", "crane", "hen"]), categories) == (
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
    labels_by_id, classes = labels("tench\ngreat white shark\nhen\n")
    assert (labels_by_id, classes.ids) == (expected, ["tench", "great white shark", "hen"])
    labels_by_id, classes = labels("n1\ttench fish\ngreat white shark\thai\n\nhen\tHuhn\n")
    assert (labels_by_id, classes.names) == (expected, ["tench fish", "hai", "Huhn"])
    (tmp_path / "tree" / "great white shark").rename(tmp_path / "tree" / "n2")
    labels_by_id, classes = labels("n1 tench, Tinca tinca\nn2 shark, hai\nhen\n")
    assert (labels_by_id, classes.ids) == ({"n2/x.jpg": 1, "hen/x.jpg": 2}, ["n1", "n2", "hen"])
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
