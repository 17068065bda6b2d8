"""launchers/chain.py: what it refuses before anything is submitted."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.reports import chain_report, method_titles
from tests.helpers.in_process import EVALUATE, call
from tests.helpers.tiny import TINY, finished

CHAIN = "launchers/chain.py"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning, and evaluations of 30 images before and after it."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    finished(folder)
    for name, weights in (("before", "reference.pth"), ("after", "weights.pth")):
        options = ("--config", folder / "config.yaml", "--model.weights", folder / weights)
        options += ("--evaluation.num_images", 30, "--evaluation.fgs.search", "true")
        ended = call(EVALUATE, *options, "--output", folder / name)
        assert ended.code == 0, ended.stderr
    return folder


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("deep_defense", "Deep Defense"),
        ("clean", "Clean fine-tuning"),
        ("parseval+adversarial_2", "Parseval training + Adversarial training"),
        ("own.methods:Mine", "Mine"),
    ],
)
def test_labels_of_methods(method: str, label: str) -> None:
    assert method_titles.label(method) == label


def test_the_report_names_the_method(chain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(chain, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["objective"]["method"] = "parseval+own.methods:Mine"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    chain_report.write(copy)
    rows = list(csv.reader((copy / "report" / "table.csv").open()))
    assert ["Parseval training + Mine" in row for row in rows] == [False, False, True]


def launch(folder: Path, *evaluation_options: object, tuning: tuple[object, ...] = ()) -> str:
    """What the launcher prints; nothing is submitted."""
    options = (*TINY, *tuning, "--output", folder, "--dry_run", "true")
    ended = call(CHAIN, "--cluster", "local", "--", *options, "--", *evaluation_options)
    assert ended.code == (2 if ended.stderr.startswith("error: ") else 0), ended.stderr
    return ended.stdout + ended.stderr


def test_results_of_other_options_are_refused(chain: Path) -> None:
    """Otherwise the report would show them as if they were measured with these options."""
    assert "would submit" in launch(chain, "--evaluation.num_images", 30)
    line = launch(chain, "--evaluation.num_images", 40)
    assert "before/results/0-of-1 contains results of another evaluation" in line
    assert "num_images: 40 -> 30); remove " in line
    line = launch(chain, "--evaluation.num_images", 30, "--evaluation.attack.method", "best")
    assert "before/results/0-of-1 contains results of another evaluation" in line


def test_results_of_other_weights_are_refused(chain: Path) -> None:
    weights, kept = chain / "weights.pth", (chain / "weights.pth").read_bytes()
    weights.write_bytes((chain / "reference.pth").read_bytes())
    try:
        line = launch(chain, "--evaluation.num_images", 30)
    finally:
        weights.write_bytes(kept)
    assert "after/results/0-of-1 contains results of another evaluation" in line
    assert "weights: " in line


def test_a_checkpoint_of_other_options_is_refused(chain: Path) -> None:
    line = launch(chain, "--evaluation.num_images", 30, tuning=("--optim.lr", 0.5))
    assert "is of a run with other options (optim.lr: 0.01 -> 0.5)" in line
    other = ("--optim.lr", 0.5, "--resume")
    line = launch(chain, "--evaluation.num_images", 30, tuning=(*other, chain / "no.pt"))
    assert "resume: no file" in line
    line = launch(chain, "--evaluation.num_images", 30, tuning=(*other, "never"))
    assert "resume is never, but" in line
    # The same fine-tuning is done, so it is not submitted.
    never = ("--resume", "never")
    assert "would submit" in launch(chain, "--evaluation.num_images", 30, tuning=never)
