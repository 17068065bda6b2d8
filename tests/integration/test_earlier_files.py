"""Files of an earlier commit, f7e5c01, are still read: a YAML file, a checkpoint, results.

tests/data/f7e5c01 holds a run of 180 steps of a small net, stopped after step 150; its final
weights, as that commit made them; and the first of two shards of their evaluation on 20 digits.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.in_process import EVALUATE, FINETUNE, call

EARLIER = Path(__file__).resolve().parents[1] / "data" / "f7e5c01"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the files."""
    shutil.copytree(EARLIER, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_run_is_resumed(folder: Path) -> None:
    ended = call(FINETUNE, "--config", "run/config.yaml")
    assert ended.code == 0, ended.stderr
    assert "step-000000150.pt, step 150" in ended.stdout
    weights = torch.load("run/weights.pth", weights_only=True)
    before = torch.load(EARLIER / "run/checkpoints/step-000000150.pt", weights_only=True)["model"]
    for name, expected in torch.load("weights.pth", weights_only=True).items():
        # The pruned search has changed since then: by 1 % of what the last 30 steps change.
        change = (expected - before[name]).norm()
        assert (weights[name] - expected).norm() < 0.05 * change, name
    assert json.loads((folder / "run" / "summary.json").read_text())["after"]["num_samples"] == 40


def test_an_evaluation_is_completed_and_merged(folder: Path) -> None:
    ended = call(EVALUATE, "--config", "evaluation/config.yaml", "--shard", "1/2")
    assert ended.code == 0, ended.stderr
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert (summary["num_samples"], summary["num_missing"]) == (20, 0)
    assert summary["accuracy"] == 0.8
    assert summary["rho2"] == pytest.approx(0.05397, rel=1e-3)  # of the whole evaluation, then
