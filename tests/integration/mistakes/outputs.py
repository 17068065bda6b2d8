"""Mistakes: outputs that cannot be written, in every tool that takes one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.integration.mistakes import whole
from tests.integration.mistakes.case import Case

INDEX, PACK, REPORT = "tools/index.py", "tools/pack.py", "tools/report.py"
Argv = Sequence[object]


def tabulated(folder: Path, out: Path | str) -> Argv:
    run = whole.write_tree(whole.evaluation(), folder / "run")
    return (REPORT, "table", run, "--out", out)


def drawn(folder: Path, out: Path | str) -> Argv:
    run = whole.write_tree(whole.evaluation(), folder / "run")
    return (REPORT, "figures", "ratios", run, "--out", out)


def compared(folder: Path, out: Path | str) -> Argv:
    run = whole.write_tree(whole.evaluation(), folder / "run")
    return (REPORT, "compare", run, run, "--resamples", 10, "--out", out)


def joined(folder: Path, out: Path | str) -> Argv:
    return (INDEX, "join", whole.index(folder), "--out", out)


def indexed(folder: Path, out: Path | str) -> Argv:
    whole.index(folder)
    return (INDEX, "tar", folder / "photos.tar", "--out", out)


def averaged(folder: Path, out: Path | str) -> Argv:
    return (INDEX, "mean", whole.index(folder), *("--crop", 28, "--resize", 28), "--out", out)


def packed(folder: Path, out: Path | str) -> Argv:
    (folder / "images").write_bytes(whole.idx(np.zeros((3, 4, 5))))
    (folder / "labels").write_bytes(whole.idx(np.array([0, 1, 1])))
    return (PACK, "idx", folder / "images", folder / "labels", "--out", out)


def converted(folder: Path, out: Path | str) -> Argv:
    np.savez(folder / "n.npz", conv1_w=np.zeros((4, 3, 2, 2)), conv1_b=np.zeros(4))
    return ("tools/caffe.py", folder / "n.npz", out)


def measured(_: Path, out: Path | str) -> Argv:
    """With images that are not there, which are looked for after the output."""
    return ("tools/benchmark.py", "loader", "--data", "nowhere.parquet", "--json", out)


def reproduced(folder: Path, out: Path | str) -> Argv:
    return ("tools/reproduce.py", "mnist_mlp", "--data", folder, "--output", out)


WRITERS: dict[str, tuple[Callable[[Path, Path | str], Argv], str]] = {
    "report.py table": (tabulated, "give another --out"),
    "report.py figures": (drawn, "give another --out"),
    "report.py compare": (compared, "give another --out"),
    "index.py join": (joined, "give another --out"),
    "index.py tar": (indexed, "give another --out"),
    "index.py mean": (averaged, "give another --out"),
    "pack.py": (packed, "give another --out"),
    "caffe.py": (converted, "give another target"),
    "benchmark.py": (measured, "give another --json"),
    "reproduce.py": (reproduced, "give another --output"),
}


def below_a_file(name: str) -> Case:
    write, remedy = WRITERS[name]

    def argv(folder: Path) -> Argv:
        (folder / "file").touch()
        return write(folder, folder / "file" / "x.npy")

    return Case(f"B-24 {name}: below a file", argv, f"cannot write .*file/x.*: Not a dir.*{remedy}")


def in_proc(name: str) -> Case:
    write, remedy = WRITERS[name]
    line = rf"cannot write /proc/x.*: No such file or directory; {remedy}"
    return Case(f"B-24 {name}: in /proc", lambda folder: write(folder, "/proc/x.npy"), line)


def a_folder(name: str) -> Case:
    write, remedy = WRITERS[name]

    def argv(folder: Path) -> Argv:
        (folder / "out.npy").mkdir()
        return write(folder, folder / "out.npy")

    return Case(
        f"B-24 {name}: a folder", argv, rf"cannot write .*out\.npy: Is a directory; {remedy}"
    )


def a_device(name: str) -> Case:
    """Which was replaced by a file where the user may do so."""
    write, remedy = WRITERS[name]

    def argv(folder: Path) -> Argv:
        (folder / "out.npy").symlink_to("/dev/full")  # not itself: it would be replaced, too
        return write(folder, folder / "out.npy")

    line = rf"cannot write .*out\.npy: it is not a regular file; {remedy}"
    return Case(f"B-9 {name}: a device", argv, line)


def no_folder(name: str, line: str) -> Case:
    """It is made."""
    write, _ = WRITERS[name]

    def argv(folder: Path) -> Argv:
        return write(folder, folder / "new" / "folder" / "x.y")

    return Case(f"B-24 {name}: no folder", argv, line, code=0)


OF_FILES = [name for name in WRITERS if name not in ("report.py figures", "reproduce.py")]

CASES: list[Case] = [
    *map(below_a_file, WRITERS),
    *map(in_proc, [name for name in WRITERS if name != "reproduce.py"]),
    *map(a_folder, OF_FILES),
    *map(a_device, OF_FILES),
    no_folder("report.py table", "^$"),
    no_folder("report.py figures", r"new/folder/x\.y\.svg"),
    no_folder("report.py compare", "40 images in both"),
    no_folder("index.py join", r"x\.y: 8 images"),
    no_folder("caffe.py", r"new/folder/x\.y"),
    Case(
        "B-24 reproduce.py: in /proc",
        lambda folder: reproduced(folder, "/proc/x.npy"),
        "cannot write /proc/x.*: No such file or directory; give another --output",
    ),
    Case(
        "B-24 report.py figures: no name",
        lambda folder: drawn(folder, "."),
        r"cannot write \.: it is a folder; give another --out",
    ),
    Case(
        "B-16 reproduce.py: no data",
        lambda folder: ("tools/reproduce.py", "mnist_mlp", "--data", "/nonexistent", "--dry-run"),
        "--data: no folder /nonexistent",
    ),
]
