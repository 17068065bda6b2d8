"""Damaged indices, checkpoints, YAML files and metrics of runs."""

from pathlib import Path

import torch

from pipeline.data.index import METADATA_KEY
from tests.unit.mistakes import whole
from tests.unit.mistakes.case import FINETUNE, Case
from tests.unit.mistakes.damaged_data import column, of_metadata, of_table
from tests.unit.mistakes.damaged_runs import (
    Words,
    changed_checkpoint,
    loaded,
    of_checkpoint,
    of_weights,
    saved,
)

LEFT_OUT = r"^warning: .*metrics\.jsonl: 1 line is damaged and left out"


def nan() -> bytes:
    return saved({name: value * torch.nan for name, value in loaded(whole.weights()).items()})


def of_yaml(number: str, content: bytes, line: str) -> Case:
    def argv(folder: Path) -> Words:
        (folder / "own.yaml").write_bytes(content)
        return (FINETUNE, "--config", folder / "own.yaml", "--dry_run", "true")

    return Case(number, argv, rf"own\.yaml.*{line}")


def of_metrics(number: str, damage: whole.Damage, line: str, code: int = 2) -> Case:
    def argv(folder: Path) -> Words:
        whole.write_tree(whole.run(), folder / "run")
        whole.damage_file(folder / "run" / "metrics.jsonl", damage)
        path = whole.index(folder)
        return (FINETUNE, *whole.run_options(path), "--output", folder / "run")

    return Case(number, argv, line, code)


CASES: list[Case] = [
    of_table(
        "index: metadata is no JSON",
        lambda t: t.replace_schema_metadata({METADATA_KEY: b'{"version'}),
        r"tools/index\.py",
    ),
    of_metadata("index: metadata without classes", r"tools/index\.py", classes=None),
    of_metadata("index: metadata without sizes", r"tools/index\.py", file_sizes=None),
    of_table("index: labels are text", column("label", ["a"]), r"label.*tools/index\.py"),
    of_table("index: labels are null", column("label", [0, None]), r"label.*tools/index\.py"),
    of_weights("weights: NaN", nan, "holds numbers that are not finite"),
    of_checkpoint(
        "checkpoint: no optimizer",
        changed_checkpoint(lambda s: s.pop("optimizer")),
        r"is damaged: it .*optimizer",
    ),
    of_checkpoint(
        "checkpoint: no config",
        changed_checkpoint(lambda s: s.pop("config")),
        r"is damaged: it .*config",
    ),
    of_checkpoint(
        "checkpoint: another net",
        changed_checkpoint(lambda s: s.update(model={"0.weight": torch.zeros(3)})),
        r"is damaged: it does not fit the net",
    ),
    of_checkpoint(
        "checkpoint: an evaluation without epoch",
        changed_checkpoint(lambda s: s["history"][0].pop("epoch")),
        r"is damaged: it has an invalid history .*epoch",
    ),
    of_yaml("YAML: syntax", b"train: [1\nmodel: x", ""),
    of_yaml("YAML: empty", b"", ""),
    of_yaml("YAML: null", b"train:\n  epochs: null\n", "epochs"),
    of_yaml("YAML: not UTF-8", b"model:\n  name: \xff\xfe\n", ""),
    of_yaml("YAML: a list", b"- 1\n- 2\n", ""),
    of_metrics("metrics: a damaged line", whole.replaced(b'"step": 0', b'"step" 0'), LEFT_OUT, 0),
    of_metrics("metrics: a line without step", whole.replaced(b'"step"', b'"stop"'), LEFT_OUT, 0),
]
