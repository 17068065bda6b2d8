"""Mistakes: Kaggle's tree, WebDataset shards, and folders with a file of labels."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers.images import write_tar
from tests.integration.mistakes.case import Case
from tests.integration.mistakes.index_files import INDEX, PNG, tree

HEADER = "ImageId,PredictionString\n"
SOLUTION = HEADER + "v1,n1 1 2 3 4\nv2,n2 1 2 3 4\n"
SYNSETS = "n1 tench, Tinca\nn2 goldfish\n"


def kaggle(
    solution: str | None = SOLUTION,
    synsets: str | None = SYNSETS,
    images: Sequence[str] = ("train/n1/x.JPEG", "train/n2/x.JPEG", "val/v1.JPEG", "val/v2.JPEG"),
    more: Sequence[object] = ("--partial",),
) -> Callable[[Path], Sequence[object]]:
    """The command line that indexes Kaggle's tree with the given files; None: it is missing."""

    def argv(folder: Path) -> Sequence[object]:
        root = tree(folder, *(f"ILSVRC/Data/CLS-LOC/{name}" for name in images), "empty/")
        texts = {"LOC_val_solution.csv": solution, "LOC_synset_mapping.txt": synsets}
        for name, text in texts.items():
            if text is not None:
                (root / name).write_text(text)
        return (INDEX, "kaggle", root, "--out", folder / "out", *more)

    return argv


def shards(
    *shards_members: dict[str, bytes], more: Sequence[object] = (), cut: int = 0
) -> Callable[[Path], Sequence[object]]:
    """The command line that indexes shards 0.tar, 1.tar, ... without the last ``cut`` bytes."""

    def argv(folder: Path) -> Sequence[object]:
        for number, members in enumerate(shards_members):
            path = write_tar(folder / f"{number}.tar", members)
            os.truncate(path, path.stat().st_size - cut)
        (folder / "classes.txt").write_text("n1 tench\nn2 goldfish\n")
        return (INDEX, "webdataset", "[0-9].tar", "--out", folder / "i.parquet", *more)

    return argv


def labels(
    text: str | None, *names: str, more: Sequence[object] = ()
) -> Callable[[Path], Sequence[object]]:
    """The command line that indexes a folder with a file of labels; None: it is missing."""

    def argv(folder: Path) -> Sequence[object]:
        if text is not None:
            (folder / "labels.txt").write_text(text)
        (folder / "classes.txt").write_text("n1 tench\nn2 goldfish\n")
        return (INDEX, "folder", tree(folder, *names), "--labels", "labels.txt", *more)

    return argv


def sample(key: str, label: bytes = b"0", kind: str = "cls") -> dict[str, bytes]:
    return {f"{key}.{kind}": label, f"{key}.png": PNG}


LISTED = ("--classes", "classes.txt")

CASES: list[Case] = [
    Case("kaggle", kaggle(), r"train\.parquet: 2 images of 2 .*\n.*val\.parquet: 2 images of 2", 0),
    Case("kaggle, counts", kaggle(more=()), r"train: 2 images, ILSVRC-2012 has 1,281,167.*--part"),
    Case(
        "kaggle, no val folder",
        kaggle(images=["train/n1/x.JPEG"], more=()),
        r"no folder .*ROOT/ILSVRC/Data/CLS-LOC/val; give the folder into which .* --partial",
    ),
    Case(
        "kaggle, train alone",
        kaggle(images=["train/n1/x.JPEG"], solution=None),
        r"train\.parquet: 1 image of 2 classes",
        0,
    ),
    Case("kaggle, neither", kaggle(images=[]), r"ROOT has no folder ILSVRC/Data/CLS-LOC/train or"),
    Case("kaggle, no CSV", kaggle(None), r"no file .*LOC_val_solution\.csv; it states the class"),
    Case("kaggle, empty CSV", kaggle("\n"), r"LOC_val_solution\.csv is empty"),
    Case(
        "kaggle, another CSV",
        kaggle("id,label\nv1,n1\n"),
        r"LOC_val_solution\.csv cannot be read \(its first line is not ImageId,Pred.*Kaggle's down",
    ),
    Case(
        "kaggle, a CSV cut short",
        kaggle(HEADER + "v1,n1 1\nv2"),
        r"LOC_val_solution\.csv cannot be read \(line 3 is not an image and its class\)",
    ),
    Case("kaggle, quotes", kaggle(HEADER + 'v1,"n1'), r"solution\.csv cannot be read \(unexpected"),
    Case("kaggle, twice", kaggle(SOLUTION + "v1,n2 1"), r"solution\.csv lists v1 twice, .* line 4"),
    Case(
        "kaggle, an image without a row",
        kaggle(HEADER + "v1,n1 1 2 3 4"),
        r"LOC_val_solution\.csv has no line for .*/val/v2\.JPEG; add its class, or move",
    ),
    Case(
        "kaggle, a row without an image",
        kaggle(SOLUTION + "v3,n1 1\n", more=()),
        r"/val lacks 1 of the images that .*LOC_val_solution\.csv lists, first v3; .*--partial",
    ),
    Case("kaggle, rows for more images", kaggle(SOLUTION + "v3,n1 1\n"), r"2 images of 2 cl", 0),
    Case(
        "kaggle, a row's class",
        kaggle(SOLUTION.replace("n2", "n9")),
        r"LOC_val_solution\.csv: the class n9 of v2 is not among the 2 classes; correct the file",
    ),
    Case("kaggle, no list", kaggle(synsets=None), r"kaggle: no file .*/LOC_synset_mapping\.txt"),
    Case(
        "kaggle, a folder's class",
        kaggle(synsets="n1 tench\n"),
        r"LOC_synset_mapping\.txt does not list the class of .*/train/n2; take the file from Kag",
    ),
    Case("webdataset", shards(sample("a"), sample("b", b"1")), r"2 images of 2 classes", 0),
    Case(
        "webdataset, no match",
        lambda _: (INDEX, "webdataset", "none-*.tar", "--out", "i.parquet"),
        r"webdataset: no file matches none-\*\.tar",
    ),
    Case(
        "webdataset, a shard of a range",
        lambda folder: (
            *shards(sample("a"))(folder)[:2],
            *("{0..1}.tar", "--out", "i.parquet"),
        ),
        r"no file .*1\.tar",
    ),
    Case(
        "webdataset, given twice",
        lambda folder: (*shards(sample("a"))(folder)[:3], "0.tar", "--out", "i.parquet"),
        r"0\.tar is given twice",
    ),
    Case(
        "webdataset, cut short",
        shards(sample("a"), cut=10240 - 3 * 512 - 20),
        r"0\.tar .*a\.png; the download is not complete",
    ),
    Case(
        "webdataset, no class",
        shards(sample("a"), {"b.png": PNG}),
        r"1\.tar: b has no class: b\.cls or b\.json is missing; write the shard again",
    ),
    Case(
        "webdataset, twice in a shard",
        shards({"a.cls": b"0", "a.png": PNG, "a.jpg": PNG}),
        r"0\.tar has a second image of the key a, a\.jpg; write the shard again",
    ),
    Case(
        "webdataset, twice in shards",
        shards(sample("a"), sample("a")),
        r"the key a is in 0\.tar and in 1\.tar; .*--repeated-keys",
    ),
    Case(
        "webdataset, twice in shards, allowed",
        shards(sample("a"), sample("a"), more=["--repeated-keys"]),
        r"2 images of 1 class",
        0,
    ),
    Case(
        "webdataset, a class outside the list",
        shards(sample("a", b"2"), more=LISTED),
        r"0\.tar: a\.cls holds the class number 2; --classes lists 2 classes, 0 to 1",
    ),
    Case(
        "webdataset, classes of the list",
        shards(sample("a", b"1"), more=LISTED),
        r"1 image of 2 classes(.*\n)*.*1 class has no images: n1",
        0,
    ),
    Case(
        "webdataset, no number",
        shards(sample("a", b"n01440764")),
        r"0\.tar: a\.cls holds 'n01440764', not a class number",
    ),
    Case("webdataset, negative", shards(sample("a", b"-1")), r"a\.cls holds '-1', not a class num"),
    Case(
        "webdataset, too large",
        shards(sample("a", b"9" * 30)),
        r"0\.tar: the class number 9+ is not below 1,000,000; list the classes with --classes",
    ),
    Case(
        "webdataset, no JSON",
        shards(sample("a", b"{", "json")),
        r"0\.tar: a\.json is not JSON \(.*\); write the shard again",
    ),
    Case(
        "webdataset, another key",
        shards(sample("a", b'{"class": 3, "b": 1}', "json")),
        r"a\.json has no 'label'; its keys are: b, class; .* --label-key",
    ),
    Case(
        "webdataset, a WordNet id",
        shards(sample("a", b'{"label": "n1"}', "json")),
        r"a\.json holds 'n1', not a class number",
    ),
    Case(
        "webdataset, names of several dots",
        shards(sample("a.b")),
        r"left out 0\.tar: a\.b\.png: a name of several dots; the key would end at the first one",
    ),
    Case("webdataset, no samples", shards({"x": b""}), r"0\.tar contains no images that can be in"),
    Case("labels", labels("x 1\ny.png 0\n", "x.png", "y.png"), r"2 images of 2 classes", 0),
    Case("labels, no file", labels(None, "x.png"), r"--labels: no file labels\.txt; it states the"),
    Case(
        "labels, one word",
        labels("x 1\n\ny\n", "x.png"),
        r"--labels: line 3 of labels\.txt is 'y'; give an image's name and its class",
    ),
    Case("labels, twice", labels("x 1\nx 1", "x.png"), r"labels\.txt lists x twice, .* line 2"),
    Case("labels, no line", labels("x 1", "x.png", "d/y.png"), r"has no line for .*ROOT/d/y\.png"),
    Case("labels, no image", labels("x 1\ny 0", "x.png"), r"lacks 1 of .*first y; .*--partial"),
    Case(
        "labels, no image, allowed",
        labels("x 1\ny 0", "x.png", more=["--partial"]),
        r"1 class has no images: 0",
        0,
    ),
    Case(
        "labels, a number outside the list",
        labels("x 2", "x.png", more=LISTED),
        r"labels\.txt: the class 2 of x is not among the 2 classes, which are numbered 0 to 1",
    ),
    Case(
        "labels, an id outside the list",
        labels("x n01", "x.png", more=LISTED),
        r"labels\.txt: the class n01 of x is not among the 2 classes; did you mean n1\?",
    ),
    Case(
        "--partial without labels",
        lambda folder: (INDEX, "folder", tree(folder, "a/x.png"), "--partial"),
        r"--partial has no effect without --labels",
    ),
    Case("flat folder, remedy", lambda f: (INDEX, "folder", tree(f, "x.png")), "folder --labels F"),
]
