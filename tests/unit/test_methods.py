"""The methods of training: each one is compared with its definition."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import (
    AdversarialConfig,
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    ParsevalConfig,
    RegularizerConfig,
)
from pipeline.errors import UserError
from pipeline.methods import Clean, Method, Term
from pipeline.methods.deep_defense import matching
from pipeline.methods.parseval import Parseval, retracted
from pipeline.models.attack_view import AttackView
from pipeline.models.paper_nets import lenet
from pipeline.training.objective import Objective
from pipeline.training.step_stats import is_nonfinite
from tests.helpers.runs import ROOT, Run, command, environment, expect_error, metrics, weights

PAPER = RegularizerConfig(lam=15, c=25, d=5)


def objective(net: nn.Module, method: str, **given: object) -> Objective:
    options = ObjectiveConfig(method=method, adversarial=AdversarialConfig(eps=0.1), **given)
    return Objective(net, FinetuneConfig(objective=options, regularizer=PAPER))


def gradients(found: Objective, batch: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    found.zero_grad()
    found(*batch, use_methods=True).loss.backward()
    return [p.grad.clone() for p in found.net.parameters()]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return lenet().double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 28, 28, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 10, (6,), generator=generator)


def test_fgs_examples_are_mixed_in(net: nn.Module, batch: tuple) -> None:
    images, labels = batch
    points = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(net(points), labels), points)
    examples = images + 0.1 * slope.sign()
    expected = 0.5 * F.cross_entropy(net(images), labels) + 0.5 * F.cross_entropy(
        net(examples), labels
    )
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    found = objective(net, "adversarial_2")
    assert found(*batch, use_methods=True).loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for mine, theirs in zip(gradients(found, batch), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    alone = found(*batch, use_methods=False).loss
    assert alone.item() == pytest.approx(F.cross_entropy(net(images), labels).item(), rel=1e-12)


def test_methods_add_up(net: nn.Module, batch: tuple) -> None:
    parts = [gradients(objective(net, m), batch) for m in ("deep_defense", "adversarial_2")]
    clean = gradients(objective(net, "clean"), batch)
    both = objective(net, "deep_defense+adversarial_2")
    for one, two, base, sum_ in zip(*parts, clean, gradients(both, batch), strict=True):
        torch.testing.assert_close(one + two - base, sum_, rtol=1e-9, atol=1e-12)
    assert both(*batch, use_methods=True).ratio.gt(0).all()


@pytest.mark.parametrize("gradient", ["unrolled", "boundary"])
def test_the_regulariser_reaches_only_the_layers_asked_for(
    net: nn.Module, batch: tuple, gradient: str
) -> None:
    def with_layers(*layers: str, lam: float = 15) -> Objective:
        options = RegularizerConfig(lam=lam, c=25, d=5, gradient=gradient, layers=list(layers))
        return Objective(net, FinetuneConfig(regularizer=options))

    clean, whole = gradients(with_layers(lam=0), batch), gradients(with_layers(), batch)
    masked = with_layers("5.*", "0.bias")
    assert masked(*batch, use_methods=True).loss.item() == pytest.approx(
        with_layers()(*batch, use_methods=True).loss.item(), rel=1e-12
    )
    names = [name for name, _ in net.named_parameters()]
    for name, found, plain, full in zip(names, gradients(masked, batch), clean, whole, strict=True):
        expected = full if name in ("5.weight", "5.bias", "0.bias") else plain
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(full, plain)
    with pytest.raises(UserError, match=r"fc1\.\* matches none .* 0\.weight, 0\.bias"):
        matching(net, ["5.*", "fc1.*"])


def test_parseval_moves_singular_values_as_the_closed_form_says() -> None:
    torch.manual_seed(0)
    for shape in ((4, 7), (7, 4)):
        matrix = torch.randn(1, *shape, dtype=torch.float64)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        s = torch.tensor([[0.4, 0.8, 1.1, 1.3]], dtype=torch.float64)
        matrix = u @ torch.diag_embed(s) @ v
        for _ in range(3):
            expected = 1.1 * s - 0.1 * s**3
            matrix = retracted(matrix, 0.1)
            found = torch.linalg.svdvals(matrix).sort().values
            torch.testing.assert_close(found, expected.sort().values)
            assert (expected - 1).norm() < (s - 1).norm()
            s = expected


def test_parseval_projects_columns_of_every_layer(net: nn.Module) -> None:
    grouped = nn.Sequential(net, nn.Flatten(), nn.Conv2d(4, 6, 3, groups=2).double())
    options = ObjectiveConfig(method="parseval", parseval=ParsevalConfig(beta=0.01, columns=0.3))
    method = Parseval(FinetuneConfig(objective=options), AttackView(grouped))
    before = {name: p.detach().clone() for name, p in grouped.named_parameters()}
    method.after_step(1)
    for name, parameter in grouped.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, before[name])
            continue
        groups = 2 if name.startswith("2.") else 1
        old = before[name].reshape(groups, len(parameter) // groups, -1)
        new = parameter.detach().reshape(old.shape)
        moved = (old != new).any(dim=(0, 1))
        assert moved.sum() == max(1, round(0.3 * old.shape[2])), name
        part = old[:, :, moved]
        torch.testing.assert_close(new[:, :, moved], retracted(part, 0.01))
        torch.testing.assert_close(
            retracted(part, 0.01), 1.01 * part - 0.01 * part @ part.mT @ part
        )
    again = [p.detach().clone() for p in grouped.parameters()]
    method.after_step(2)  # other columns
    assert any(
        not torch.equal(a != b, c != d)
        for a, b, c, d in zip(before.values(), again, again, grouped.parameters(), strict=True)
    )


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


def test_mistakes(run: Run, net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adversarial\.eps: adversarial_2 needs it"):
        Objective(net, FinetuneConfig(objective=ObjectiveConfig(method="adversarial_2")))
    with pytest.raises(UserError, match="no method 'x'; use clean, deep_defense"):
        objective(net, "deep_defense+x")
    with pytest.raises(UserError, match="cannot be imported"):
        objective(net, "tests.helpers.nets:nothing")
    with pytest.raises(UserError, match="no subclass"):
        objective(net, "tests.helpers.nets:linear")
    with pytest.raises(ValueError, match=r"weight must be from 0 to 1"):
        AdversarialConfig(weight=1.5)
    line = expect_error(run, "--output", tmp_path / "x", "--regularizer.layers", "[fc9.*]")
    assert "regularizer.layers: fc9.* matches none" in line


class Endless(Method):
    """A method whose term is not finite."""

    def term(self, clean: Clean) -> Term:
        return Term(clean.cross_entropy.mean() / 0)


def test_a_term_that_is_not_finite_is_noticed(net: nn.Module, batch: tuple) -> None:
    found = objective(net, "tests.unit.test_methods:Endless")
    assert is_nonfinite(found(*batch, use_methods=True)).all()
    assert not is_nonfinite(found(*batch, use_methods=False)).any()


def test_frozen_parameters_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    net[0].requires_grad_(False)
    options = FinetuneConfig(
        objective=ObjectiveConfig(method="parseval"), model=ModelConfig(freeze_batch_norm=True)
    )
    before = net[0].weight.clone()
    Objective(net, options).after_step(1)
    assert torch.equal(net[0].weight, before)


@pytest.mark.slow
def test_the_example_of_the_documentation(run: Run, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "mine.py").write_text(code)
    argv = ("--model.name", "mlp", "--train.pretrain_epochs", 0, "--train.epochs", 1)
    argv += ("--train.batch_size", 1000, "--log.every_steps", 1, "--evaluation.num_images", 20)
    method = ("--objective.method", "mine:InputGradient", "--objective.options", '{"weight": 0.5}')
    for name, more in (("clean", ("--objective.method", "clean")), ("mine", method)):
        done = subprocess.run(
            command("pipeline/finetune.py", *argv, *more, "--output", tmp_path / name),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
    plain, penalised = (metrics(tmp_path / n, "train/loss")[1] for n in ("clean", "mine"))
    assert penalised > plain  # in the first step the weights are the same
    before, after = (
        json.loads((tmp_path / n / "summary.json").read_text())["after"] for n in ("clean", "mine")
    )
    assert after["rho2"] != before["rho2"]
