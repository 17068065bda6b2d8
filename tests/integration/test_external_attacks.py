"""Attacks of foolbox and adversarial-library, by import path.

adversarial-library is tested where it is installed; pyproject.toml says how to install it.
"""

import importlib.util
import random
from collections.abc import Callable
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import chain
from pipeline.attacks.counting_model import UnitRange, unbounded_widths
from pipeline.attacks.external import ExternalAttack, ExternalResult
from pipeline.config import AttackConfig
from pipeline.models.attack_view import AttackView
from tests.helpers import nets
from tests.helpers.attack_runs import linear

needs_adv_lib = pytest.mark.skipif(
    importlib.util.find_spec("adv_lib") is None, reason="needs adversarial-library (adv-lib)"
)
SPACES = ("bounded", "unbounded")
DDN = ("adv_lib.attacks:ddn", {"steps": 50})
FOOLBOX_DDN = ("foolbox.attacks:DDNAttack", {"steps": 50})
DEEPFOOL = ("foolbox.attacks:L2DeepFoolAttack", {"overshoot": 0.002})
NOISE = ("foolbox.attacks:LinearSearchBlendedUniformNoiseAttack", {"steps": 20})


def from_adv_lib(path: str, **options: Any) -> Any:
    return pytest.param((path, options), marks=needs_adv_lib, id=f"{path}-{options}")


def curved(space: str) -> tuple[AttackView, Tensor, Tensor]:
    """A net that is not linear, images of several ranges, and their classes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)
    )
    images = torch.randn(24, 1, 8, 8) * torch.logspace(-0.5, 1.0, 24)[:, None, None, None]
    if space == "bounded":
        images = images.sigmoid()
    view = AttackView(net, bounds=(0.0, 1.0) if space == "bounded" else None, min_batch_size=16)
    return view, images, view(images).argmax(dim=1)


def agree(whole: ExternalResult, other: ExternalResult, part: slice) -> bool:
    """Whether a batch has the results of part of another, up to the rounding of the library.

    torch may compute the last values of a tensor by other instructions than the first ones, so the
    place in the batch can change last bits: ALMA's by 1.2e-7 on CPUs with AVX2.
    """
    pairs = {name: (getattr(whole, name)[part], getattr(other, name)) for name in vars(whole)}
    delta, other_delta = pairs.pop("delta")
    same = all(torch.equal(left, right) for left, right in pairs.values())
    return same and torch.allclose(delta, other_delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("attack", "tolerance"),
    [
        pytest.param(
            ("adv_lib.attacks:ddn", {"steps": 400, "init_norm": 0.2}), 1.25, marks=needs_adv_lib
        ),
        pytest.param(("adv_lib.attacks:df", {"overshoot": 0.002}), 1.01, marks=needs_adv_lib),
        pytest.param(("adv_lib.attacks:sdf", {}), 1.02, marks=needs_adv_lib),
        (("foolbox.attacks:DDNAttack", {"steps": 400, "init_epsilon": 0.2}), 1.25),
        (DEEPFOOL, 1.01),
    ],
    ids=str,
)
def test_distances_have_a_closed_form(attack: tuple, tolerance: float, space: str) -> None:
    view, images, labels, distance = linear(space)
    result = ExternalAttack(*attack).perturb(view, images, labels)
    assert result.flipped.all()
    assert torch.equal(result.prediction, view(images + result.delta).argmax(dim=1))
    ratio = result.delta.flatten(1).norm(dim=1) / distance
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() < tolerance


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "attack",
    [
        from_adv_lib("adv_lib.attacks:ddn", steps=40),
        from_adv_lib("adv_lib.attacks:fmn", norm=2, steps=40),
        from_adv_lib("adv_lib.attacks:fmn", norm="inf", steps=40),
        from_adv_lib("adv_lib.attacks:df"),
        from_adv_lib("adv_lib.attacks:df", norm="inf"),
        from_adv_lib("adv_lib.attacks:sdf"),
        from_adv_lib("adv_lib.attacks:tr", p="inf", eps=0.01),
        from_adv_lib("adv_lib.attacks:fab", norm=2, n_iter=10),
        from_adv_lib("adv_lib.attacks:fab", norm="inf", n_iter=10),
        from_adv_lib("adv_lib.attacks:fab", norm=2, n_iter=2, restarts=2),  # random numbers
        from_adv_lib("adv_lib.attacks:alma", num_steps=40),
        from_adv_lib("adv_lib.attacks:pdgd", num_steps=40),
        FOOLBOX_DDN,
        ("foolbox.attacks:L2FMNAttack", {"steps": 40}),
        ("foolbox.attacks:LInfFMNAttack", {"steps": 40}),
        DEEPFOOL,
        NOISE,
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_batch(attack: tuple, space: str) -> None:
    view, images, labels = curved(space)
    external = ExternalAttack(*attack)
    whole = external.perturb(view, images, labels)
    for part in (slice(0, 1), slice(3, 12), slice(12, 24)):
        assert agree(whole, external.perturb(view, images[part], labels[part]), part)


@pytest.mark.parametrize("attack", [from_adv_lib(DDN[0], steps=20), FOOLBOX_DDN], ids=str)
def test_noise_for_images_without_a_gradient_does_not_depend_on_the_batch(attack: tuple) -> None:
    """The class of images with a negative mean is constant around them; DDN moves at random."""
    net = nn.Sequential(nn.Flatten(), nn.AvgPool1d(64), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[3].bias.copy_(torch.tensor([0.25, 0.0]))
    view = AttackView(net, min_batch_size=16)
    images = torch.tensor([0.2, -0.1, 0.1, -0.4]).view(4, 1, 1, 1) + torch.zeros(4, 1, 8, 8)
    labels = torch.zeros(4, dtype=torch.long)
    external = ExternalAttack(*attack)
    whole = external.perturb(view, images, labels)
    assert whole.flipped[[0, 2]].all()
    for part in (slice(0, 2), slice(1, 3), slice(3, 4)):
        assert agree(whole, external.perturb(view, images[part], labels[part]), part)


class Counter(nn.Module):
    """A net that counts its forward and backward passes, for one image at a time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.gradients = net, 0, 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        assert len(images) == 1
        self.forwards += 1
        logits = self.net(images)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient: Tensor) -> None:
        self.gradients += 1


def queries_of_single_images(
    call: Callable[[nn.Module, Tensor, Tensor], Any], images: Tensor, labels: Tensor, net: nn.Module
) -> list[tuple[int, int]]:
    """The queries of an attack that is called without the adapter."""
    queries = []
    for n in range(len(images)):
        counter = Counter(net)
        call(counter, images[n : n + 1].clone(), labels[n : n + 1])
        queries.append((counter.forwards, counter.gradients))
    return queries


def test_queries_of_foolbox() -> None:
    view, images, labels = curved("bounded")

    def call(attack: Any) -> Callable[[nn.Module, Tensor, Tensor], Any]:
        def run(net: nn.Module, images: Tensor, labels: Tensor) -> Any:
            model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
            return attack.run(model, images, labels)

        return run

    for attack, own in (
        (FOOLBOX_DDN, foolbox.attacks.DDNAttack(steps=50)),
        (DEEPFOOL, foolbox.attacks.L2DeepFoolAttack(overshoot=0.002)),
    ):
        result = ExternalAttack(*attack).perturb(view, images, labels)
        queries = list(
            zip(result.num_forwards.tolist(), result.num_gradients.tolist(), strict=True)
        )
        assert queries == queries_of_single_images(call(own), images, labels, view.net)
        if attack is FOOLBOX_DDN:
            assert queries == [(50, 50)] * len(images)


@needs_adv_lib
def test_queries_of_adversarial_library() -> None:
    """df and sdf leave finished images out of the batch."""
    from adv_lib import attacks  # pyright: ignore[reportMissingImports]

    view, images, labels = curved("bounded")
    for name, options in (("ddn", {"steps": 50}), ("df", {}), ("sdf", {})):
        result = ExternalAttack(f"adv_lib.attacks:{name}", options).perturb(view, images, labels)
        queries = list(
            zip(result.num_forwards.tolist(), result.num_gradients.tolist(), strict=True)
        )

        def call(net: nn.Module, x: Tensor, y: Tensor, name: str = name, o: Any = options) -> Any:
            return getattr(attacks, name)(net, x, y, **o)

        assert queries == queries_of_single_images(call, images, labels, view.net)
        assert (queries == [(50, 50)] * len(images)) == (name == "ddn")


@pytest.mark.parametrize(
    "attack", [DEEPFOOL, ("foolbox.attacks:DDNAttack", {"steps": 200})], ids=str
)
def test_a_distance_beyond_the_first_interval(attack: tuple) -> None:
    """The boundary is 8 times the largest value of the second image away, in each pixel. DDN ends
    without a perturbation there, DeepFool with one that touches the end of the interval."""
    weight = torch.stack([torch.zeros(16), torch.ones(16)])
    net = nets.linear(weight, torch.tensor([0.0, -16.0]))
    images = torch.full((3, 1, 4, 4), 0.0)
    images[1:, ..., 0] = torch.tensor([0.12, 1.0])[:, None, None]
    labels = torch.zeros(3, dtype=torch.long)
    widths = unbounded_widths(images)
    assert widths.tolist() == [4.0, 0.5, 4.0]
    result = ExternalAttack(*attack).perturb(AttackView(net), images, labels)
    expected = (16 - images.flatten(1).sum(dim=1)) / 4
    assert result.flipped.all()
    assert torch.allclose(result.delta.flatten(1).norm(dim=1), expected, rtol=0.03)
    assert result.num_forwards[1] > result.num_forwards[2]


def test_the_map_to_the_unit_interval() -> None:
    images = 3 * torch.randn(50, 3, 8, 8)
    widths = unbounded_widths(images)
    largest = images.abs().flatten(1).amax(dim=1)
    assert (widths >= 4 * largest).all()
    assert (widths < 8 * largest).all()
    unit_range = UnitRange.around_zero(widths.max().item())
    unit = unit_range.to_unit(images)
    assert unit.min() >= 0.25
    assert unit.max() <= 0.75
    assert (unit_range.from_unit(unit) - images).abs().max() < 1e-6 * widths.max()
    pixels = torch.rand(4, 3, 8, 8)
    identity = UnitRange.of_bounds((0.0, 1.0))
    assert torch.equal(identity.to_unit(pixels), pixels)
    assert torch.equal(identity.from_unit(pixels), pixels)


@pytest.mark.parametrize("attack", [FOOLBOX_DDN, DEEPFOOL], ids=str)
def test_other_bounds(attack: tuple) -> None:
    view, images, labels = curved("unbounded")
    view = AttackView(view.net, bounds=(-2.0, 3.0))
    images = images.clamp(-2.0, 3.0)
    labels = view(images).argmax(dim=1)
    result = ExternalAttack(*attack).perturb(view, images, labels)
    assert result.flipped.float().mean() > 0.9
    points = images + result.delta
    assert points.min() >= -2 - 1e-6
    assert points.max() <= 3 + 1e-6


@pytest.mark.parametrize("space", SPACES)
def test_images_of_another_class_stay(space: str) -> None:
    view, images, labels, _ = linear(space)
    others = (labels + 1) % 5
    result = ExternalAttack(*FOOLBOX_DDN).perturb(view, images, others)
    assert (result.delta == 0).all()
    assert torch.equal(result.prediction, labels)
    assert result.flipped.all()


def test_no_images() -> None:
    view, images, labels, _ = linear("unbounded")
    result = ExternalAttack(*FOOLBOX_DDN).perturb(view, images[:0], labels[:0])
    assert result.delta.shape == (0, 1, 8, 8)
    assert result.num_forwards.shape == result.flipped.shape == (0,)


def test_the_net_and_random_numbers_are_left_as_they_were() -> None:
    view, images, labels, _ = linear("bounded")
    view.net.train()
    view.net[1].bias.requires_grad_(False)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    with torch.no_grad():
        ExternalAttack(*NOISE).perturb(view, images, labels)
        result = ExternalAttack(*FOOLBOX_DDN).perturb(view, images, labels)
    assert result.flipped.all()
    assert view.net.training
    assert [p.requires_grad for p in view.net.parameters()] == [True, False]
    assert all(p.grad is None for p in view.net.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]


def test_an_attack_for_another_norm_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Its perturbations are not small in the norm that is measured."""
    for name, norm, warned in (("LInfFMNAttack", 2.0, True), ("LInfFMNAttack", "inf", False)):
        method = f"foolbox.attacks:{name}"
        chain.stages_of(AttackConfig(method=method, norm=norm, options={"steps": 5}), None)
        assert ("minimises the norm p inf, and" in capsys.readouterr().err) is warned
