"""Batches with more images than may be in the net at the same time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig, RegularizerConfig
from pipeline.models.build import build
from pipeline.training import memory_budget
from pipeline.training.objective import make_objective
from tests.helpers.gradients import gradient, gradient_by, setting, with_attack
from tests.helpers.runs import Run, environment


@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
@pytest.mark.parametrize("start", ["current", "overshot"])
@pytest.mark.parametrize(
    "name", ["lenet", pytest.param("resnet18", marks=pytest.mark.slow), "tests.helpers.nets:smooth"]
)
def test_parts_change_nothing(name: str, start: str, kind: str) -> None:
    net, images, labels = setting(name, count=7)
    config = with_attack(
        kind,
        linearize_at=start,
        target_class="fixed",
        candidate_search="pruned",
        pruning_factor=1e6,
    )
    whole = gradient_by(net, images, labels, config)
    for most in (1, 3, 7, 100):
        config.max_images = most
        parts = gradient_by(net, images, labels, config)
        assert (whole - parts).norm() < 1e-9 * whole.norm(), most


def peak(net: nn.Module, images: torch.Tensor, config: RegularizerConfig) -> int:
    objective = make_objective(net, config)
    net.eval()
    labels = net(images).argmax(dim=1).detach()
    return memory_budget.peak_bytes(
        lambda: objective(images, labels, use_methods=True).loss.backward(), images.device
    )


@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
@pytest.mark.parametrize(
    "name", [pytest.param("squeezenet1_1", marks=pytest.mark.slow), "tests.helpers.nets:smooth"]
)
def test_parts_bound_the_memory(name: str, kind: str) -> None:
    net, images, _ = setting(name, count=32)
    net, images = net.float(), images.float()
    config = with_attack(kind, linearize_at="overshot")
    whole = peak(net, images, config)
    few = peak(net, images[:4], config)
    config.max_images = 4
    parts = peak(net, images, config)
    inputs = memory_budget.INPUTS * images.numel() * images.element_size()
    assert parts < 1.1 * few + inputs
    if name == "squeezenet1_1":
        assert parts < 0.4 * whole


def test_dropout_and_parts() -> None:
    """The recomputed cross-entropy draws the same masks as before."""
    torch.manual_seed(0)
    net = build(ModelConfig(name="tests.helpers.nets:dropout_mlp"), 10)
    images, labels = torch.randn(6, 1, 28, 28), torch.arange(6)
    config = with_attack()
    config.max_images, config.lam = 2, 1e-12
    objective = make_objective(net, config)
    torch.manual_seed(1)
    losses = objective(images, labels, use_methods=True)
    losses.loss.backward()
    parts = gradient(net)
    net.zero_grad()
    torch.manual_seed(1)
    logits = torch.cat([net(part) for part in images.split(2)])
    nn.functional.cross_entropy(logits, labels).backward()
    assert torch.allclose(parts, gradient(net), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_fit_finds_what_fits(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    net = build(ModelConfig(name="resnet18"), 10)
    config = with_attack(linearize_at="overshot")
    objective = make_objective(net, config, ModelConfig(freeze_batch_norm=frozen))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    shape, cpu = (3, 64, 64), torch.device("cpu")
    ample = objective.max_images_that_fit(shape, 24, cpu)
    assert ample.images == 24
    assert "24 of 24 images at once" in str(ample)
    assert net.training is True
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    images = torch.randn(24, *shape)
    weights = sum(p.numel() * 4 for p in net.parameters())
    free = int(
        (3 * weights + 10 * ample.per_image) / memory_budget.SHARE
    )  # two gradients, momentum
    monkeypatch.setattr(memory_budget, "free_bytes", lambda *_: free)
    tight = objective.max_images_that_fit(shape, 24, cpu)
    assert 2 <= tight.images <= 12
    if frozen:
        config.max_images = tight.images
        assert peak(net, images, config) < memory_budget.SHARE * free
    monkeypatch.setattr(memory_budget, "free_bytes", lambda *_: 1)
    assert objective.max_images_that_fit(shape, 24, cpu).images == 1


def test_free_memory_is_shared() -> None:
    cpu = torch.device("cpu")
    alone, shared = memory_budget.free_bytes(cpu), memory_budget.free_bytes(cpu, sharers=4)
    assert 2**20 < alone < 2**50
    assert shared == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize("raised", ["torch.empty(2**50)", "raise torch.OutOfMemoryError('CUDA')"])
def test_out_of_memory_is_one_line_with_remedies(raised: str) -> None:
    script = (
        "import torch\n"
        "from pipeline.config import RuntimeConfig\n"
        "from pipeline.runtime.distributed import distributed_session\n"
        f"with distributed_session(RuntimeConfig(device='cpu')):\n    {raised}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: out of memory")
    assert "--regularizer.max_images auto" in line


def test_auto_says_what_it_chose(run: Run, tmp_path: Path) -> None:
    options = ("--dry_run", "true", "--regularizer.max_images", "auto")
    done = run("pipeline/finetune.py", "--output", tmp_path / "run", *options)
    assert re.search(
        r"max_images auto: (\d+) of \1 images at once \(\d+\.\d MiB each, \d+\.\d GiB free\)",
        done.stdout,
    ), done.stdout
