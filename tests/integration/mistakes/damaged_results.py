"""Mistakes: damaged results, summaries, weights of Caffe, and submissions."""

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.caffe import caffemodel
from tests.integration.mistakes import whole
from tests.integration.mistakes.case import Case

REPORT, CAFFE, JOBS = "tools/report.py", "tools/caffe.py", "launchers/jobs.py"
Argv = Sequence[object]

SHARD = "results/0-of-1"


def of_results(number: str, name: str, damage: whole.Damage, line: str) -> Case:
    """report.py merge, which reads what evaluate.py reads when it resumes."""

    def argv(folder: Path) -> Argv:
        whole.write_tree(whole.evaluation(), folder / "run")
        path = folder / "run" / SHARD / name
        if not path.exists():
            path.write_bytes(b"")
        whole.damage_file(path, damage)
        return (REPORT, "merge", folder / "run")

    return Case(number, argv, rf"{name} {line}")


def with_mean(folder: Path) -> Argv:
    """Results of an evaluation with a mean image, which is cut short."""
    whole.write_tree(whole.evaluation(), folder / "run")
    np.save(folder / "run" / SHARD / "mean.npy", np.zeros((1, 8, 8), np.float32))
    whole.damage_file(folder / "run" / SHARD / "mean.npy", whole.half)
    return (REPORT, "merge", folder / "run")


def shard_renamed(folder: Path) -> Argv:
    whole.write_tree(whole.evaluation(), folder / "run")
    (folder / "run" / SHARD).rename(folder / "run" / "results" / "0-of-1.old")
    return (REPORT, "merge", folder / "run")


def two_decoders(folder: Path) -> Argv:
    """A second shard, whose images a GPU decoded."""
    whole.write_tree(whole.evaluation(), folder / "run")
    other = folder / "run" / "results" / "0-of-2"
    shutil.copytree(folder / "run" / SHARD, other)
    by_gpu = whole.replaced(b'"decoder": "cpu"', b'"decoder": "gpu"')
    whole.damage_file(other / "manifest.json", by_gpu)
    return (REPORT, "merge", folder / "run")


LINE = "is damaged in line 1, which .*; delete that line and evaluate again"
RESULTS = [
    of_results(
        "manifest: empty", "manifest.json", whole.empty, "is damaged: .*; move its folder away"
    ),
    of_results("manifest: half", "manifest.json", whole.half, "is damaged"),
    of_results(
        "manifest: a key",
        "manifest.json",
        whole.replaced(b'"num_indexed"', b'"mum_indexed"'),
        "is damaged: it lacks num_indexed",
    ),
    of_results(
        "manifest: no FGS", "manifest.json", whole.replaced(b'"fgs"', b'"fgz"'), "is damaged.*fgs"
    ),
    of_results(
        "manifest: no classes",
        "manifest.json",
        whole.replaced(b'"class_names"', b'"class_nemes"'),
        "is damaged.*class_names",
    ),
    of_results("manifest: a list", "manifest.json", lambda _: b"[]", "is damaged"),
    of_results("result: a damaged line", "rank0.jsonl", whole.replaced(b'"row":', b'"row"'), LINE),
    of_results("B-27 result: no row", "rank0.jsonl", whole.replaced(b'"row"', b'"raw"'), LINE),
    of_results(
        "B-27 result: no steps", "rank0.jsonl", whole.replaced(b'"steps"', b'"stops"'), LINE
    ),
    of_results("result: text", "rank0.jsonl", whole.replaced(b'"steps": 3', b'"steps": "3"'), LINE),
    of_results(
        "result: null",
        "rank0.jsonl",
        whole.replaced(b'"image_norm": 2.0', b'"image_norm": null'),
        LINE,
    ),
    of_results(
        "result: FGS too few", "rank0.jsonl", whole.replaced(b"[true, true]", b"[true]"), LINE
    ),
    of_results(
        "result: no image", "rank0.jsonl", whole.replaced(b'"row": 0,', b'"row": 40,'), LINE
    ),
    of_results(
        "result: a digit",
        "rank0.jsonl",
        whole.replaced(b'"perturbation_norm": ', b'"perturbation_norm": 1'),
        "is damaged in line 1, which does not match its checksum; delete that line",
    ),
    of_results("result: not UTF-8", "rank0.jsonl", whole.replaced(b"image 0", b"image \xff"), LINE),
    of_results("result: a number", "rank0.jsonl", lambda data: b"17\n" + data, LINE),
    of_results("runs.jsonl", "runs.jsonl", lambda _: b'{"shard"\n', "is damaged in line 1"),
    of_results("example: half", "examples/3.npz", whole.half, r"cannot be read .*; remove it"),
    of_results("example: empty", "examples/3.npz", whole.empty, r"cannot be read .*; remove it"),
    of_results(
        "example: an array is lost",
        "examples/3.npz",
        lambda data: data.replace(b"delta.npy", b"dalta.npy"),
        "cannot be read .*delta",
    ),
    Case("mean of results: half", with_mean, r"mean\.npy is not an .npy file"),
    Case(
        "shards of two decoders",
        two_decoders,
        r"0-of-1 and .*0-of-2 .*: input\.decoder: cpu -> gpu; give all shards --data\.decoder cpu"
        ", or .*--mix_decoders true",
    ),
    Case(
        "shard: another name", shard_renamed, r"0-of-1\.old is no folder of a shard.*; move it away"
    ),
]


def of_summary(number: str, damage: whole.Damage, line: str, *command: object) -> Case:
    def argv(folder: Path) -> Argv:
        whole.write_tree(whole.evaluation(), folder / "run")
        whole.damage_file(folder / "run" / "summary.json", damage)
        return (REPORT, *(command or ("table",)), folder / "run", "--out", folder / "out")

    return Case(number, argv, rf"summary\.json {line}")


def of_history(
    number: str, change: Callable[[dict[str, Any]], object], line: str, *command: str
) -> Case:
    """A run of finetune.py whose summary.json is changed."""

    def argv(folder: Path) -> Argv:
        whole.write_tree(whole.run(), folder / "run")
        path = folder / "run" / "summary.json"
        summary = json.loads(path.read_text())
        change(summary)
        path.write_text(json.dumps(summary))
        return (
            REPORT,
            *(command or ("figures", "epochs")),
            folder / "run",
            "--out",
            folder / "out",
        )

    return Case(number, argv, line)


def in_progress(folder: Path) -> Argv:
    whole.write_tree(whole.evaluation(), folder / "run")
    (folder / "run" / "summary.json").unlink()
    return (REPORT, "figures", "sheet", folder / "run", "--out", folder / "out")


def another_norm(folder: Path) -> Argv:
    """Beside a run with rho2."""
    whole.write_tree(whole.run(), folder / "one")
    whole.write_tree(whole.run(), folder / "two")
    path = folder / "two" / "summary.json"
    text = path.read_text().replace('"rho2"', '"rho_inf"').replace('"norm": "2"', '"norm": "inf"')
    path.write_text(text)
    return (REPORT, "figures", "epochs", folder / "one", folder / "two", "--out", folder / "out")


def of_samples(number: str, damage: Callable[[Path], object], line: str) -> Case:
    def argv(folder: Path) -> Argv:
        whole.write_tree(whole.evaluation(), folder / "run")
        damage(folder / "run" / "samples.parquet")
        return (REPORT, "figures", "ratios", folder / "run", "--out", folder / "out")

    return Case(number, argv, rf"samples\.parquet {line}")


def other_table(path: Path) -> None:
    pq.write_table(pa.table({"row": [1]}), path)


def change_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def without_identity(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({b"deep_defense_samples": b"{}"})


def null_norms(table: pa.Table) -> pa.Table:
    position = table.schema.get_field_index("image_norm")
    return table.set_column(position, "image_norm", pa.nulls(len(table), pa.float64()))


AGAIN = r"cannot be read .*; make it again with tools/report\.py merge"
SUMMARIES = [
    of_summary("summary: half", whole.half, "cannot be read"),
    of_summary("summary: no object", lambda _: b"3", "is no summary"),
    of_summary(
        "summary: no norm", whole.replaced(b'"norm"', b'"narm"'), "lacks norm of its definition"
    ),
    of_summary("summary: no rho2", whole.replaced(b'"rho2"', b'"rho3"'), "lacks rho2"),
    of_summary("summary: no accuracy", whole.replaced(b'"accuracy"', b'"acc"'), "lacks accuracy"),
    of_summary(
        "summary: accuracy is text", whole.replaced(b"0.5,", b'"a",'), "has another kind of value"
    ),
    of_history(
        "history: empty", lambda s: s["history"].clear(), r"summary\.json lacks history: no eval"
    ),
    of_history(
        "history: no epoch", lambda s: s["history"][0].pop("epoch"), r"summary\.json lacks .*epoch"
    ),
    of_history(
        "history: no rho2", lambda s: s["history"][1].pop("rho2"), r"summary\.json lacks .*rho2"
    ),
    of_history("table: no before", lambda s: s.pop("before"), "lacks before", "table"),
    Case("figure: another norm", another_norm, "two measures rho_inf, and .*one rho2"),
    Case(
        "figure: in progress", in_progress, r"no file .*summary\.json: is .* a run that has ended"
    ),
    of_samples("samples: half", lambda p: whole.damage_file(p, whole.half), AGAIN),
    of_samples("samples: empty", lambda p: whole.damage_file(p, whole.empty), AGAIN),
    of_samples("samples: another table", other_table, AGAIN),
    of_samples("samples: no identity", change_table(without_identity), AGAIN),
    of_samples("samples: null", change_table(null_norms), AGAIN),
    of_samples("samples: no column", change_table(lambda t: t.drop_columns(["steps"])), AGAIN),
]


def of_caffe(number: str, name: str, make: Callable[[Path], object], line: str) -> Case:
    def argv(folder: Path) -> Argv:
        make(folder / name)
        return (CAFFE, folder / name, folder / "net.pth")

    return Case(number, argv, line)


def arrays(**values: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **values)


def cut_arrays(path: Path) -> None:
    np.savez(path, conv1_w=np.zeros((4, 3, 2, 2)), conv1_b=np.zeros(4))
    whole.damage_file(path, whole.half)


def lone_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def renamed_layer(path: Path) -> None:
    """With a name that is not UTF-8."""
    layers = {"conv1": [np.ones((4, 3, 2, 2), np.float32), np.ones(4, np.float32)]}
    path.write_bytes(caffemodel(layers, old=True))
    whole.damage_file(path, whole.replaced(b"conv1", b"con\xff1"))


CAFFES = [
    of_caffe("caffe: a layer's name", "n.caffemodel", renamed_layer, "the name of a layer is no"),
    of_caffe("caffe: npz cut", "n.npz", cut_arrays, r"n\.npz cannot be read"),
    of_caffe("caffe: npz empty", "n.npz", lambda p: p.write_bytes(b""), r"n\.npz cannot be read"),
    of_caffe("caffe: npz is an npy", "n.npz", lone_array, r"n\.npz cannot be read"),
    of_caffe(
        "caffe: npz is a pickle",
        "n.npz",
        lambda p: p.write_bytes(pickle.dumps({})),
        r"n\.npz cannot be read",
    ),
    of_caffe("caffe: text", "n.npz", arrays(conv1_w=["a"]), r"n\.npz.* conv1_w"),
    of_caffe("caffe: nothing", "n.npz", arrays(), r"n\.npz contains no weights"),
    of_caffe(
        "caffe: no bias", "n.npz", arrays(conv1_w=np.zeros((4, 3, 2, 2))), "no array .*conv1_b"
    ),
    of_caffe(
        "B-27 caffe: a vector",
        "n.npz",
        arrays(conv1_w=np.zeros(4), conv1_b=np.zeros(4)),
        r"n\.npz: conv1 has weights of the shape \(4,\)",
    ),
    of_caffe(
        "caffe: garbage",
        "n.caffemodel",
        lambda p: p.write_bytes(whole.garbage(bytes(999))),
        r"n\.caffemodel is not a \.caffemodel",
    ),
]


def of_submission(number: str, damage: whole.Damage) -> Case:
    def argv(folder: Path) -> Argv:
        values = {"folder": "x", "kind": "finetune", "cluster": "local", "jobs": ["1"], "logs": []}
        path = folder / "runs" / "submission.json"
        path.parent.mkdir()
        path.write_bytes(damage(json.dumps(values).encode()))
        return (JOBS, folder / "runs")

    return Case(number, argv, r"submission\.json is damaged; remove it")


SUBMISSIONS = [
    of_submission("submission: half", whole.half),
    of_submission("submission: no jobs", whole.replaced(b'"jobs"', b'"jabs"')),
    of_submission("submission: jobs are none", whole.replaced(b'["1"]', b"[]")),
    of_submission("submission: jobs are a number", whole.replaced(b'["1"]', b"1")),
]

CASES: list[Case] = [*RESULTS, *SUMMARIES, *CAFFES, *SUBMISSIONS]
