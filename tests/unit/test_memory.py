"""Batches larger than the images that may be in the net at once."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import (
    AdversarialConfig,
    FinetuneConfig,
    ModelConfig,
    ObjectiveConfig,
    RegularizerConfig,
    RuntimeConfig,
)
from pipeline.models.build import build
from pipeline.runtime.allocator import is_out_of_memory
from pipeline.runtime.distributed import distributed_session
from pipeline.training import memory_budget
from pipeline.training.objective import Objective, make_objective
from tests.helpers.gradients import every_gradient, gradient, gradient_by, setting, with_attack
from tests.helpers.in_process import FINETUNE, succeed


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        *every_gradient("lenet", "tests.helpers.nets:smooth"),
        pytest.param("resnet18", "overshot", "unrolled", marks=pytest.mark.slow),
    ],
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


@pytest.mark.parametrize(
    "kind", ["unrolled", "one_step", pytest.param("boundary", marks=pytest.mark.slow)]
)
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
    inputs = memory_budget.NUM_INPUT_SIZED_TENSORS * images.numel() * images.element_size()
    assert parts < 1.1 * few + inputs
    if name == "squeezenet1_1":
        assert parts < 0.4 * whole


def test_adversarial_training_in_parts() -> None:
    """The forward passes of clean images and of FGS examples have few images, and nothing else
    changes."""
    net, images, labels = setting("tests.helpers.nets:smooth", count=32)
    config = FinetuneConfig(
        objective=ObjectiveConfig(
            method="adversarial_2", adversarial=AdversarialConfig(eps=0.1, weight=0.3)
        )
    )

    def gradient_and_peak() -> tuple[torch.Tensor, int]:
        objective = Objective(net, config)
        net.zero_grad()
        taken = memory_budget.peak_bytes(
            lambda: objective(images, labels, use_methods=True).loss.backward(), images.device
        )
        return gradient(net), taken

    whole, whole_peak = gradient_and_peak()
    config.regularizer.max_images = 3
    parts, parts_peak = gradient_and_peak()
    assert (whole - parts).norm() < 1e-9 * whole.norm()
    assert parts_peak < 0.5 * whole_peak


def test_dropout_and_parts() -> None:
    """The recomputed cross-entropy draws the masks it drew before."""
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
    assert "24 images at once, a pass has 24" in str(ample)
    assert net.training is True
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    images = torch.randn(24, *shape)
    weights = sum(p.numel() * 4 for p in net.parameters())
    free = int(
        (3 * weights + 10 * ample.per_image) / memory_budget.USABLE_SHARE
    )  # two gradients, momentum
    monkeypatch.setattr(memory_budget, "free_bytes", lambda *_: free)
    tight = objective.max_images_that_fit(shape, 24, cpu)
    assert 2 <= tight.images <= 12
    if frozen:
        config.max_images = tight.images
        assert peak(net, images, config) < memory_budget.USABLE_SHARE * free
    monkeypatch.setattr(memory_budget, "free_bytes", lambda *_: 1)
    assert objective.max_images_that_fit(shape, 24, cpu).images == 1


@pytest.mark.parametrize(("num_fitting", "expected"), [(99, 12), (12, 12), (7, 7), (4, 4), (3, 2)])
def test_more_images_than_a_pass(
    num_fitting: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of 4 images, of which 3 points each can be taken at once; 1 MB an image."""
    taken: list[int] = []
    monkeypatch.setattr(
        memory_budget, "peak_bytes", lambda step, _: step() or taken[-1] * 1_000_000
    )
    free = (num_fitting + 0.1) * 1e6 / memory_budget.USABLE_SHARE
    monkeypatch.setattr(memory_budget, "free_bytes", lambda *_: free)
    size = memory_budget.PassSize((1, 1, 1), 4, 12)
    budget = memory_budget.max_images_that_fit(taken.append, [], size, torch.device("cpu"))
    assert budget.images == expected


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("lenet", "unrolled", 12),
        ("lenet", "boundary", 4),
        ("tests.helpers.nets:smooth", "unrolled", 4),  # not piecewise linear
    ],
)
def test_what_can_be_taken_at_once(name: str, kind: str, expected: int) -> None:
    net, images, _ = setting(name, count=1)
    config = with_attack(kind)
    config.attack.max_iterations = 3
    objective = make_objective(net, config)
    shape = tuple(images.shape[1:])
    assert objective._largest_useful(shape, 4, torch.device("cpu")) == 4
    points = max(method.points_per_image(images) for method in objective.methods)
    assert 4 * points == expected


def test_free_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 2**20 < memory_budget.free_bytes(cpu) < 2**50

    def read_text(path: Path) -> str:
        if path.name == "meminfo":
            return "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"
        raise FileNotFoundError(path)  # no control group

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory_budget.free_bytes(cpu) == 8000 * 1024
    assert memory_budget.free_bytes(cpu, num_processes=4) == 2000 * 1024


def allocate_on_a_cpu() -> None:
    torch.empty(2**50)


def allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA")


@pytest.mark.parametrize("allocate", [allocate_on_a_cpu, allocate_on_a_gpu])
def test_out_of_memory_is_one_line_with_remedies(
    allocate: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, distributed_session(RuntimeConfig(device="cpu")):
        allocate()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: out of memory")
    assert "--regularizer.max_images auto" in line


def test_auto_says_what_it_chose(tmp_path: Path) -> None:
    options = ("--dry_run", "true", "--regularizer.max_images", "auto")
    output = succeed(FINETUNE, "--output", tmp_path / "run", *options)
    assert re.search(
        r"max_images auto: (\d+) images at once, a pass has \1 "
        r"\(\d+\.\d MiB each, \d+\.\d GiB free\)",
        output,
    ), output


@pytest.mark.parametrize("drops", [False, True])
def test_the_estimate_is_of_training_mode(drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout the cross-entropy's graph is alive while the regulariser's is made."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(16, 16, 3), nn.ReLU()]
    last = nn.Dropout() if drops else nn.Identity()
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, nn.Linear(16, 10))
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    objective = make_objective(net, with_attack("one_step"))

    def train() -> None:
        loss = objective(images, labels, use_methods=True).loss
        torch.autograd.grad(loss, list(net.parameters()))

    train()  # with the checks of the net
    in_training = memory_budget.peak_bytes(train, images.device)

    def peak_of(step: Callable[[int], None], *_: object) -> int:
        return memory_budget.peak_bytes(lambda: step(len(images)), images.device)

    monkeypatch.setattr(memory_budget, "max_images_that_fit", peak_of)
    estimate = make_objective(net, with_attack("one_step")).max_images_that_fit(
        (3, 32, 32), 16, images.device
    )
    assert estimate == pytest.approx(in_training, rel=0.1)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("Error in thread 1: CUDA allocation failed", True),
        ("Can't allocate 1073741824 bytes on device 0.", True),
        ("CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2)", True),
        ("NCCL error ... Cuda failure 2 'out of memory'", True),
        ("CUDA runtime API error cudaErrorMemoryAllocation (2)", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("could not create a primitive descriptor for a convolution", False),
    ],
)
def test_errors_that_mean_out_of_memory(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == expected
