"""Mistakes: the folders of runs, and their files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.unit.mistakes.case import EVALUATE, FINETUNE, Case

ADVERSARIAL = "tools/adversarial.py"
Words = Callable[[Path], Sequence[object]]


def _into(marker: str, script: str) -> Words:
    """A run into a folder that another kind of run uses."""

    def argv(folder: Path) -> Sequence[object]:
        path = folder / "run" / marker
        path.parent.mkdir()
        if path.suffix:
            path.write_text("{}")
        else:
            path.mkdir()
        return script, "--output", path.parent, "--dry_run", "true"

    return argv


def _long_path(script: str) -> Words:
    """A path that is too long, although its names are not."""
    return lambda folder: (script, "--output", folder / "/".join(["x" * 200] * 25))


def _reference(script: str, eps_ref: float | None, *before: object) -> Words:
    """A run that takes eps_ref from the folder of an evaluation."""

    def argv(folder: Path) -> Sequence[object]:
        (folder / "eval").mkdir()
        summary = {"fgs": {"eps_ref": eps_ref}} if eps_ref else {}
        (folder / "eval" / "summary.json").write_text(json.dumps(summary))
        reference = "--evaluation.fgs.reference", folder / "eval"
        return script, *before, *reference, "--output", folder / "run", "--dry_run", "true"

    return argv


def _damaged_manifest(folder: Path) -> Sequence[object]:
    (folder / "manifest.json").write_text('{"model": ')
    return ADVERSARIAL, "--output", folder


LOCAL = ("--cluster", "local", "--")
NO_EPS_REF = r"evaluation\.fgs\.reference: .*eval/summary\.json holds no eps_ref; evaluate"
ANOTHER = r"output: .*run holds another kind of run \({}\); give another --output"
TOO_LONG = r"output: .*\.\.\. cannot be written \(File name too long\); give another --output"

CASES: list[Case] = [
    Case(
        "the first line",
        lambda folder: (FINETUNE, "--output", folder / "run", "--dry_run", "true"),
        r"\Astarting: mlp on train demo, val demo, 1 rank\(s\), output .*run; loading torch",
        code=0,
    ),
    Case("B-10", _into("checkpoints", ADVERSARIAL), ANOTHER.format("training")),
    Case("B-10 of an evaluation", _into("results", ADVERSARIAL), ANOTHER.format("evaluation")),
    Case("B-10 in finetune.py", _into("manifest.json", FINETUNE), ANOTHER.format("adversarial")),
    Case("B-10 in evaluate.py", _into("manifest.json", EVALUATE), ANOTHER.format("adversarial")),
    Case("B-10 with a damaged manifest", _damaged_manifest, r"manifest\.json is damaged; remove"),
    Case("B-28 --output too long", _long_path(FINETUNE), TOO_LONG),
    Case("B-28 --output too long, evaluate.py", _long_path(EVALUATE), TOO_LONG),
    Case("B-20", _reference(FINETUNE, 0.1), "6,000 images to train on", code=0),
    Case("B-20 in adversarial.py", _reference(ADVERSARIAL, 0.1), "images to attack", code=0),
    Case("B-20 without eps_ref", _reference(FINETUNE, None), NO_EPS_REF),
    Case("B-20 without eps_ref, evaluate.py", _reference(EVALUATE, None), NO_EPS_REF),
    Case("B-20 without eps_ref, adversarial.py", _reference(ADVERSARIAL, None), NO_EPS_REF),
    Case(
        "B-20 in the launchers",
        _reference("launchers/finetune.py", 0.1, *LOCAL),
        "would submit",
        code=0,
    ),
    Case(
        "B-20 without eps_ref, in the launchers",
        _reference("launchers/finetune.py", None, *LOCAL),
        NO_EPS_REF,
    ),
    Case(
        "B-20 without eps_ref, in the evaluations' launcher",
        _reference("launchers/evaluate.py", None, *LOCAL),
        NO_EPS_REF,
    ),
]
