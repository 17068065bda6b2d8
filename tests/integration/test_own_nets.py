"""A net of the user's own, in the working folder, on two ranks."""

from pathlib import Path

import pytest

from tests.helpers.in_process import FINETUNE
from tests.helpers.runs import SMALL, Run, weights

NET = """
import torch
from torch import nn

def net(num_classes):
    base = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
    base.register_parameter("spare", nn.Parameter(torch.arange(3.0)))
    return base
"""


@pytest.mark.slow
def test_parameters_that_the_forward_does_not_use_on_two_ranks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.py").write_text(NET)  # the name of a package of the pipeline
    monkeypatch.chdir(tmp_path)
    options = ("--model.name", "models:net", "--train.pretrain_epochs", 1, "--train.epochs", 1)
    done = run(FINETUNE, *SMALL, *options, "--output", "run", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: model.name: models:net does not use spare") == 1
    assert weights(tmp_path / "run")["spare"].tolist() == [0, 1, 2]
