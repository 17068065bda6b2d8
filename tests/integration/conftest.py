"""Runs that several files of tests read; those that change one take a copy."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.data import ilsvrc, index
from tests.helpers.evaluations import FGS
from tests.helpers.in_process import EVALUATE, succeed
from tests.helpers.layouts import Miniature
from tests.helpers.tiny import finished


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts; the best of its evaluations is the last."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    finished(folder)
    history = json.loads((folder / "summary.json").read_text())["history"]
    assert history[2]["accuracy"] > history[1]["accuracy"]
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == 18
    return folder


@pytest.fixture
def tiny_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def trained_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pipeline/finetune.py, right for more than half of the images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    net = ("--model.name", "mlp", "--train.pretrain_lr", 0.1, "--train.epochs", 1)
    finished(folder, *net, "--objective.method", "clean")
    return folder


@pytest.fixture(scope="session")
def mlp_weights(trained_mlp: Path) -> Path:
    return trained_mlp / "weights.pth"


@pytest.fixture(scope="session")
def evaluation_options(mlp_weights: Path) -> tuple:
    """Options of an evaluation of 300 digits with FGS."""
    return ("--model.weights", mlp_weights, "--evaluation.num_images", 300, *FGS)


@pytest.fixture(scope="session")
def whole_evaluation(evaluation_options: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation on one rank that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(EVALUATE, *evaluation_options, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def miniature(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    folder, out = real_data / "ilsvrc-mini", tmp_path_factory.mktemp("ilsvrc")
    archives = {name: folder / f"ILSVRC2012_img_{name}.tar" for name in ("train", "val")}
    kit = folder / "ILSVRC2012_devkit_t12.tar.gz"
    parts = [word for name, path in archives.items() for word in (f"--{name}", path)]
    succeed("tools/index.py", "ilsvrc", *parts, "--devkit", kit, "--out", out, "--partial")
    train, val = (index.read(str(out / f"{name}.parquet")) for name in archives)
    return Miniature(train, val, ilsvrc.read_development_kit(kit))
