"""What tools/report.py says of runs whose numbers cannot be set side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.protocol import SPACES
from pipeline.reports import figures, runs
from tests.helpers.in_process import call
from tests.helpers.stored_results import evaluation, finetuning

SCRIPT = "tools/report.py"
COMMANDS = ("table", "figures ratios", "figures curves")


def change(folder: Path, section: str = "", **values: Any) -> None:
    """Change values of a summary, or of an object in it."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    (summary[section] if section else summary).update(values)
    path.write_text(json.dumps(summary))


def warnings_of(command: str, *folders: Path) -> list[str]:
    out = ("--out", folders[0].parent / "x") if "figures" in command else ()
    ended = call(SCRIPT, *command.split(), *folders, *out)
    assert ended.code == 0, ended.stderr
    return ended.stderr.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_another_preprocessing_of_a_network(tmp_path: Path, command: str) -> None:
    one, two = (evaluation(tmp_path / name, 1.0) for name in ("one", "two"))
    change(two, "input", decoder="gpu")
    assert warnings_of(command, one, two) == []
    change(two, "input", crop=12)
    (line,) = warnings_of(command, one, two)
    assert line.endswith("used different images or preprocessing: input.crop: 8 -> 12")
    change(two, model="another net")
    assert warnings_of(command, one, two) == [], "nets have their own preprocessing"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_of_the_images(tmp_path: Path, command: str) -> None:
    one, two = (evaluation(tmp_path / name, 1.0) for name in ("one", "two"))
    change(two, num_missing=3, skipped=["a", "b"])
    assert warnings_of(command, one, two) == [
        f"warning: {two} is of a part of its images: 3 images are missing, 2 images did not decode"
    ]


@pytest.mark.parametrize("command", ["table", "figures epochs", "figures sweep"])
def test_fine_tunings_that_were_measured_differently(tmp_path: Path, command: str) -> None:
    one, two = (finetuning(tmp_path / str(c), 5, c, 0.9, 0.2) for c in (10, 20))
    assert warnings_of(command, one, two) == []
    change(two, "definition", max_iterations=50)
    (line,) = warnings_of(command, one, two)
    assert "measured differently: max_iterations: 5 -> 50" in line


def test_ratios_of_one_axis_have_one_norm_and_space(tmp_path: Path) -> None:
    one, two = (evaluation(tmp_path / name, 1.0) for name in ("one", "two"))
    change(two, "definition", space=SPACES["pixels"])
    with pytest.raises(UserError, match="distances on one axis need one evaluation"):
        figures.ratios([runs.read(one), runs.read(two)])
    change(two, "definition", space=SPACES["input"], norm="inf")
    change(two, rho_inf=0.1)
    with pytest.raises(UserError, match="a figure needs runs of one norm"):
        figures.ratios([runs.read(one), runs.read(two)])
