"""Methods in runs of pipeline/finetune.py."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.helpers.in_process import FINETUNE, succeed
from tests.helpers.runs import ROOT, Run, metrics, weights


@pytest.mark.slow
def test_parseval_on_one_and_on_two_ranks_gives_the_same(run: Run, tmp_path: Path) -> None:
    options = (
        *("--objective.method", "parseval", "--train.pretrain_epochs", 0, "--train.epochs", 1),
        *("--model.name", "mlp", "--train.batch_size", 1000, "--evaluation.num_images", 20),
        *("--objective.parseval.beta", 0.01, "--log.panel_images", 0),
    )
    for ranks in (0, 2):
        done = run("pipeline/finetune.py", *options, "--output", tmp_path / str(ranks), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert "6 with Parseval training (beta 0.01)" in done.stdout
    one, two = weights(tmp_path / "0"), weights(tmp_path / "2")
    plain = run(
        "pipeline/finetune.py", *options, "--objective.method", "clean", "--output", tmp_path / "c"
    )
    assert plain.returncode == 0, plain.stderr
    for name, value in weights(tmp_path / "c").items():
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
        if name.endswith("weight"):
            assert (one[name] - value).norm() > 100 * (one[name] - two[name]).norm()


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "users_method.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    options = ("--model.name", "mlp", "--train.pretrain_epochs", 0, "--train.epochs", 1)
    options += ("--train.batch_size", 1000, "--log.every_steps", 1, "--evaluation.num_images", 20)
    method = (
        "--objective.method",
        "users_method:InputGradient",
        "--objective.options",
        '{"weight": 0.5}',
    )
    for name, more in (("clean", ("--objective.method", "clean")), ("penalised", method)):
        succeed(FINETUNE, *options, *more, "--output", tmp_path / name)
    plain, penalised = (metrics(tmp_path / n, "train/loss")[1] for n in ("clean", "penalised"))
    assert penalised > plain  # in the first step the weights are the same
    before, after = (
        json.loads((tmp_path / n / "summary.json").read_text())["after"]
        for n in ("clean", "penalised")
    )
    assert after["rho2"] != before["rho2"]
