"""Mistakes: indices and their classes."""

import pyarrow as pa

from pipeline.data import demo
from tests.helpers.images import encode, picture
from tests.helpers.in_process import FINETUNE
from tests.integration.mistakes.case import Case
from tests.integration.mistakes.index_files import (
    DEMO,
    INDEX,
    bomb,
    column,
    compressed_tar,
    damaged,
    evaluate,
    finetune,
    folder_of,
    folder_with_link,
    index_into_a_pipe,
    join,
    mean,
    metadata,
    mixed,
    non_utf8,
    split_folders,
    tar_of,
    tree,
    weights,
    with_classes_file,
)

CASES: list[Case] = [
    Case(
        "B-1", finetune("0"), r"data\.val: .*i\.parquet .*label 0 is '1', not '0'; 9 classes, not"
    ),
    Case(
        "B-1, allowed",
        finetune("9", "--data.check_classes", "false"),
        r"warning: data\.val: .*9 classes, not 10; missing: '9'",
        0,
    ),
    Case(
        "B-2",
        evaluate("3", None, "--model.num_classes", 10),
        r"model\.num_classes: .* has 9 classes, the net 10.*tools/index\.py folder.*--classes FILE",
    ),
    Case(
        "B-2, allowed",
        evaluate("3", None, "--model.num_classes", 10, "--data.check_classes", "false"),
        r"warning: model\.num_classes",
        0,
    ),
    Case("B-2, first refusal", evaluate("3", None), r"head is for 10 classes: .*--classes FILE"),
    Case(
        "weights of other classes",
        evaluate("", list("abcdefghij")),
        r"model\.weights: .*w\.pth is not for the classes of .*label 0 is '0', not 'a'",
    ),
    Case(
        "weights of more classes",
        evaluate("3", list("0123456789"), "--model.num_classes", 10),
        r"w\.pth is not for the classes of .*label 3 is '4', not '3'; 9 classes, not 10",
    ),
    Case("weights of these classes", evaluate("", list("0123456789")), r"mlp on 1 x cpu", 0),
    Case(
        "a new head for other classes",
        lambda folder: (
            *(FINETUNE, *DEMO, "--model.new_head", "true"),
            *("--model.weights", weights(folder, list("abcdefghij"))),
        ),
        "a new head of 10 classes",
        0,
    ),
    Case("B-9", index_into_a_pipe, r"cannot write .*pipe: .*not a regular file"),
    Case("B-12", folder_with_link, r"of 3 classes(.*\n)*.*2 classes have no images: b, c", 0),
    Case(
        "B-12, no image decodes",
        mixed("a/x.png", ["b/x.png"], b"text"),
        "1 class has no images: b",
        0,
    ),
    Case(
        "B-13, GIF",
        mixed("a/y.png", ["a/x.gif"], encode(picture(8, 8), "GIF")),
        r"left out a/x\.gif: GIF, which DALI does not decode",
        0,
    ),
    Case("B-21", mixed("a/y.png", ["a/x.png"], bomb(20000, 20000)), r"x\.png: more than 178,95", 0),
    Case(
        "B-21, large", folder_of("a/x.png", content=bomb(10000, 10000)), r"^\S+: 1 image of 1 ", 0
    ),
    Case("B-15, twice", join("a", "a"), r"a\.parquet is listed twice"),
    Case("B-15, output", join("a", "b", out="b.parquet"), r"--out .*b\.parquet is one of the ind"),
    Case("other classes joined", join("a", "other"), r"label 1 is 'c', not 'b'"),
    Case(
        "B-22, file",
        non_utf8(b"a/caf\xe9.png"),
        r"left out a/caf\\xe9\.png: its name is not UTF",
        0,
    ),
    Case("B-22, class", non_utf8(b"cl\xe9/x.png"), r"class folder cl\\xe9 is not UTF-8; rename it"),
    Case("a mean in place of an index", mean(out="x.parquet"), r"a mean image is a \.npy file"),
    Case("B-27, JSON", damaged(metadata(raw="{no")), r"photos\.parquet has damaged metadata"),
    Case("B-27, root", damaged(metadata(root=None)), r"photos\.parquet has damaged .*\(root\)"),
    Case("B-27, version", damaged(metadata(version=None)), r"damaged metadata \(no version\)"),
    Case("B-27, classes", damaged(metadata(classes=[1, 2])), r"damaged metadata \(classes"),
    Case("B-27, ids", damaged(metadata(class_ids=["a"])), r"damaged metadata \(class_ids\)"),
    Case("B-27, sizes", damaged(metadata(file_sizes=3)), r"damaged metadata \(file_sizes\)"),
    Case("B-27, strings", damaged(column("label", list("0011"))), r"label holds string, not integ"),
    Case(
        "B-27, null", damaged(column("label", [0, None, 1, 1], pa.int32())), r"1 of 4 rows have no"
    ),
    Case(
        "B-27, label", damaged(column("label", [0, 7, 1, 1], pa.int32())), r"label outside its 2 c"
    ),
    Case(
        "B-27, offset", damaged(column("offset", [0, 1 << 40, 1, 1])), r"beyond the end of its arch"
    ),
    Case(
        "B-27, negative", damaged(column("offset", [0, -1, 1, 1])), r"photos\.parquet: 1 of 4 imag"
    ),
    Case("B-27, size", damaged(column("width", [0, 1, 1, 1], pa.int32())), r"no width or height"),
    Case(
        "B-27, column",
        damaged(lambda t, _: t.drop_columns(["mode"])),
        r"columns mode; make it again",
    ),
    Case("tar.gz", compressed_tar, r"compressed with gzip.*: gunzip x\.tar\.gz"),
    Case("several tars", lambda _: (INDEX, "tar", "a.tar", "b.tar"), r"one archive at a time"),
    Case(
        "index over its archive", tar_of("a/x.png", out="x.tar"), r"x\.tar exists and is not an ind"
    ),
    Case(
        "folder for an archive",
        lambda folder: (INDEX, "tar", tree(folder, "a/x.png")),
        r"ROOT is a folder, not an archive.*tools/index\.py folder",
    ),
    Case("split folders", split_folders, r"train, val, which are parts of a data set"),
    Case("deeper", folder_of("x/n1/a.png", "x/n2/a.png"), r"warning: .*deeper than CLASS/IMAGE", 0),
    Case(
        "flat folder", folder_of("1.png", "2.png"), r"holds 2 files and no images in class folders"
    ),
    Case(
        "many that are no images",
        mixed("b/x.png", [f"a/{k}.txt" for k in range(20)], b"text"),
        r"left out a/15\.txt: not an image\nleft out 12 more: not an image",
        0,
    ),
    Case(
        "--classes", with_classes_file("b\na thing\nc", "a/x.png"), r"2 classes have no im.*b, c", 0
    ),
    Case("--classes, near", with_classes_file("cat\ndog", "cats/x.png"), r"'cats'.*mean cat\?"),
    Case("--classes, twice", with_classes_file("a\nb\na", "a/x.png"), r"lists 'a' twice.* line 3"),
    Case("--classes, empty", with_classes_file("\n", "a/x.png"), r"classes\.txt is empty"),
    Case(
        "--classes, no file",
        folder_of("a/x.png", more=("--classes", "no.txt")),
        r"--classes: no file no\.txt",
    ),
    Case(
        "--classes, index",
        lambda folder: (
            *(INDEX, "folder", tree(folder, "0/x.png")),
            *("--classes", demo.prepare()["train"]),
        ),
        r"1 image of 10 classes",
        0,
    ),
]
