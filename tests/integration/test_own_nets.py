"""A net of the user's own on two ranks."""

from pathlib import Path

import pytest

from tests.helpers.in_process import FINETUNE
from tests.helpers.runs import SMALL, Run, weights

UNUSED = """
import torch
from torch import nn
import data

def net(**kwargs):
    base = data.layers(**kwargs)
    base.register_parameter("spare", nn.Parameter(torch.arange(3.0)))
    return base
"""


@pytest.mark.slow
def test_parameters_that_the_forward_does_not_use_on_two_ranks(
    run: Run, users_folder: Path
) -> None:
    options = ("--model.name", "models:net", "--train.pretrain_epochs", 1, "--train.epochs", 1)
    done = run(FINETUNE, *SMALL, *options, "--output", "run", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: model.name: models:net does not use spare") == 1
    assert weights(users_folder / "run")["spare"].tolist() == [0, 1, 2]
