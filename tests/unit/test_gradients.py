"""Two ways to the exact gradient, candidates visited lazily, and the boundary gradient."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks.attack_state import Perturbation
from pipeline.attacks.deepfool import AttackOptions, deepfool
from pipeline.config import ModelConfig, RegularizerConfig, RuntimeConfig
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.models.build import build
from pipeline.regularizer import piecewise_linear
from pipeline.regularizer.trace import AttackTrace
from pipeline.regularizer.unrolled import unrolled
from pipeline.training.objective import Losses, make_objective
from tests.helpers import nets
from tests.helpers.gradients import (
    CONFIG,
    SHAPES,
    cosine,
    gradient,
    gradient_by,
    plain_gradient,
    setting,
    with_attack,
)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "lenet",
        pytest.param("squeezenet1_1", marks=pytest.mark.slow),
    ],
)
def test_the_ways_for_any_net_and_for_piecewise_linear_nets_agree(name: str) -> None:
    net, images, labels = setting(name)
    fast = gradient_by(net, images, labels, CONFIG)
    objective = make_objective(net, CONFIG)
    assert objective.view.is_piecewise_linear(images)
    objective.view._checked["piecewise_linear"] = False
    assert not objective.view.is_piecewise_linear(images)
    net.eval().zero_grad()
    objective(images, labels, use_methods=True).loss.backward()
    assert (gradient(net) - fast).norm() < 1e-9 * fast.norm()


@pytest.mark.parametrize(
    ("name", "p", "max_images"),
    [
        ("mlp", 2.0, None),
        ("lenet", 3.0, None),
        ("lenet", 2.0, 4),
        pytest.param("resnet18", 2.0, None, marks=pytest.mark.slow),
    ],
)
def test_tangents_give_the_gradient_of_the_shift(
    monkeypatch: pytest.MonkeyPatch, name: str, p: float, max_images: int | None
) -> None:
    net, images, labels = setting(name)
    config = replace(with_attack(norm=p), max_images=max_images)
    by_shift = gradient_by(net, images, labels, config)
    monkeypatch.setattr(piecewise_linear, "is_full_precision", lambda *_: False)
    by_tangents = gradient_by(net, images, labels, config)
    assert not torch.equal(by_tangents, by_shift)
    assert (by_tangents - by_shift).norm() < 1e-9 * by_shift.norm()


@pytest.mark.parametrize(
    ("precision", "least"), [(torch.bfloat16, 0.99), (torch.float16, 0.995)], ids=str
)
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_reduced_precision_needs_no_second_derivative(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: torch.dtype, least: float
) -> None:
    """The same perturbations, differentiated in both precisions."""
    net, images, labels = setting(name, 12)
    net, images = net.float(), images.float()
    first_derivative = AttackView.logit_diff_gradient

    def only_first(*args: Any, create_graph: bool = False) -> Tensor:
        assert not create_graph
        return first_derivative(*args)

    monkeypatch.setattr(AttackView, "logit_diff_gradient", only_first)
    gradients = []
    for view in (AttackView(net), AttackView(net, precision)):
        options = AttackOptions(record=True)
        perturbation = deepfool(AttackView(net), images, CONFIG.attack, labels, options=options)
        trace = AttackTrace(view, images, perturbation, CONFIG.attack, len(images))
        ratio = unrolled(trace).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
        by_parameters = torch.autograd.grad((-3 * ratio).exp().sum(), view.parameters())
        gradients.append(torch.cat([gradient.flatten() for gradient in by_parameters]))
    assert cosine(*gradients) > least
    assert abs(gradients[1].norm() / gradients[0].norm() - 1.0) < 0.02


@pytest.mark.parametrize("name", ["lenet", "tests.helpers.nets:smooth"])
@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("fp16", 0.99)])
def test_the_regularisers_precision_is_its_own(
    name: str, kind: str, precision: str, least: float
) -> None:
    """In a run in bf16, without a loss scaler, and with a gradient that is small for fp16."""
    net, images, labels = setting(name)
    net, images = net.float(), images.float()
    config = with_attack(kind)

    def term_of(number_format: str, config: RegularizerConfig) -> tuple[Tensor, Losses]:
        gradients = []
        for lam in (2e-4, 1e-4):
            runtime = RuntimeConfig(precision=number_format)
            objective = make_objective(net, replace(config, lam=lam), runtime=runtime)
            net.eval().zero_grad()
            losses = objective(images, labels, use_methods=True)
            losses.loss.backward()
            gradients.append(gradient(net).double())
        # The clean part is the same: the cross-entropy keeps the precision of the run.
        return gradients[0] - gradients[1], losses

    expected, _ = term_of("fp32", config)
    in_bf16, losses = term_of("bf16", config)
    actual, own_losses = term_of("bf16", replace(config, precision=precision))
    assert torch.equal(losses.cross_entropy, own_losses.cross_entropy)
    # one_step starts along a gradient in the run's precision, and ends at other points.
    assert cosine(actual, expected) > (0.99 if kind == "one_step" else least)
    assert not torch.equal(actual, in_bf16)


@pytest.mark.parametrize("kind", ["unrolled", "boundary"])
@pytest.mark.parametrize("linearize_at", ["current", "overshot"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_that_are_cast_once_give_the_same_gradient(
    kind: str, linearize_at: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cast without a graph, where torch makes one, would lose the gradients of kept graphs."""
    net, images, labels = setting("lenet")
    net, images = net.float(), images.float()
    config = replace(with_attack(kind, linearize_at=linearize_at), precision=precision)
    cast_once = gradient_by(net, images, labels, config)
    monkeypatch.setattr(AttackView, "cast_weights_once", lambda *_: nullcontext())
    assert torch.equal(cast_once, gradient_by(net, images, labels, config))


@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step", "true distance"])
def test_an_image_beyond_fp16s_range_does_not_spoil_the_weights(kind: str) -> None:
    net, images, labels = setting("lenet")
    net, images = net.float(), images.float()
    images[1] *= 1e5
    config = replace(with_attack("boundary" if kind == "true distance" else kind), precision="fp16")
    if kind == "true distance":
        config = replace(config, attack=replace(config.attack, method="superdeepfool"))
    objective = make_objective(net, config, runtime=RuntimeConfig(precision="bf16"))
    net.eval().zero_grad()
    losses = objective(images, labels, use_methods=True)
    losses.loss.backward()
    assert losses.loss.isfinite()
    assert not losses.flipped[1]
    assert gradient(net).isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_whose_images_all_end_in_one_iteration(precision: str) -> None:
    """Then the kept graph is that of all images, and no other forward pass is needed."""
    net, images, _ = setting("lenet")
    net, image = net.float(), images[:1].float()
    with torch.no_grad():
        label = net.eval()(image).argmax(dim=1)
    attack = {"linearize_at": "overshot", "overshoot": 0.5}  # far enough for the first step
    config = replace(with_attack("boundary", **attack), precision=precision)
    objective = make_objective(net, config)
    net.eval().zero_grad()
    losses = objective(image, label, use_methods=True)
    losses.loss.backward()
    assert losses.flipped.all()
    assert gradient(net).isfinite().all()
    assert gradient(net).norm() > 0


def test_smooth_nets_are_known_as_such() -> None:
    for name, expected in (
        ("tests.helpers.nets:smooth", False),
        ("convnext_tiny", False),
        ("mobilenet_v2", True),
        ("densenet121", True),
        ("convnet", True),
        ("nin", True),
        ("caffe_alexnet", False),
    ):
        net = build(ModelConfig(name=name), 10)
        images = torch.randn(1, *SHAPES.get(name, (3, 64, 64)))
        assert make_objective(net, CONFIG).view.is_piecewise_linear(images) is expected, name


def test_a_net_that_reads_what_its_activation_has_overwritten() -> None:
    """A fixed pattern does not overwrite, so such a net takes the way for any net."""
    torch.manual_seed(0)
    for inplace in (False, True):
        net = nets.InPlaceShortcut(inplace).double()
        images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
        labels = net(images).argmax(dim=1)
        assert make_objective(net, CONFIG).view.is_piecewise_linear(images) is not inplace
        assert cosine(gradient_by(net, images, labels), plain_gradient(net, images, labels)) > 0.999


@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
@pytest.mark.parametrize("name", ["mlp", "tests.helpers.nets:smooth"])
def test_an_image_of_zeros_has_no_gradient(name: str, kind: Any) -> None:
    """Its ratio would be infinite, and the gradient of all weights not a number."""
    net, images, labels = setting(name)
    config = replace(CONFIG, gradient=kind)
    images[1] = 0
    prediction = net(images[1:2]).argmax()
    for label in (prediction, (prediction + 1) % 10):  # in T, and in F
        labels[1] = label
        with_zeros = sum_of_penalty_gradients(net, images, labels, config)
        others = [0, 2, 3, 4, 5]
        without = sum_of_penalty_gradients(net, images[others], labels[others], config)
        assert without.norm() > 0
        assert torch.allclose(with_zeros, without, rtol=1e-6, atol=1e-9 * without.norm())


def sum_of_penalty_gradients(
    net: nn.Module, images: Tensor, labels: Tensor, config: RegularizerConfig
) -> Tensor:
    objective = make_objective(net, config)
    gradients = []
    for use_methods in (True, False):
        net.eval().zero_grad()
        objective(images, labels, use_methods=use_methods).loss.backward()
        gradients.append(gradient(net))
    return len(images) * (gradients[0] - gradients[1])


@pytest.mark.parametrize("name", ["lenet", "tests.helpers.nets:smooth"])
def test_lazy_candidates_with_a_large_safety_factor_are_all_candidates(name: str) -> None:
    net, images, labels = setting(name)
    lazy = gradient_by(
        net, images, labels, with_attack(candidate_search="pruned", pruning_factor=1e6)
    )
    whole = gradient_by(net, images, labels, CONFIG)
    assert (lazy - whole).norm() < 1e-9 * whole.norm()


def test_lazy_candidates_save_gradients_and_choose_nearly_the_same() -> None:
    net, images, labels = setting("lenet", count=60)
    counts, ratios = {}, {}
    for kind in ("exhaustive", "pruned"):
        objective = make_objective(net, with_attack(candidate_search=kind))
        calls = []
        original = objective.view.input_gradient

        def counting(  # noqa: ANN202
            forward: ForwardPass,
            adjoint: Tensor,
            calls=calls,  # noqa: ANN001
            original=original,  # noqa: ANN001
        ):
            calls.append(len(adjoint))
            return original(forward, adjoint)

        objective.view.input_gradient = counting  # type: ignore[method-assign]
        net.eval()
        ratios[kind] = objective(images, labels, use_methods=True).ratio
        counts[kind] = sum(calls)
    assert counts["pruned"] < 0.7 * counts["exhaustive"]
    assert (ratios["pruned"] >= 0.8 * ratios["exhaustive"]).all()
    assert ratios["pruned"].mean() < 1.05 * ratios["exhaustive"].mean()


def test_boundary_is_exact_on_linear_nets() -> None:
    torch.manual_seed(0)
    net = nets.linear(torch.randn(5, 30, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    images = torch.randn(12, 1, 5, 6, dtype=torch.float64)
    labels = net(images).argmax(dim=1)
    # In F the current class may change under way, as it may not in T: two classes suffice there.
    exact = gradient_by(net, images, labels, with_attack("unrolled"))
    other = gradient_by(net, images, labels, with_attack("boundary"))
    assert (exact - other).norm() < 1e-9 * exact.norm()
    net = nets.linear(torch.randn(2, 30, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
    wrong = 1 - net(images).argmax(dim=1)
    exact = gradient_by(net, images, wrong, with_attack("unrolled"))
    other = gradient_by(net, images, wrong, with_attack("boundary"))
    assert (exact - other).norm() < 1e-9 * exact.norm()


@pytest.mark.parametrize("name", ["lenet", "tests.helpers.nets:smooth"])
def test_boundary_points_nearly_the_same_way(name: str) -> None:
    net, images, labels = setting(name, count=30)
    plain = gradient_by(net, images, labels, RegularizerConfig(lam=1e-9))
    exact = gradient_by(net, images, labels, with_attack("unrolled")) - plain
    other = gradient_by(net, images, labels, with_attack("boundary")) - plain
    assert cosine(exact, other) > 0.9
    assert 0.5 < (other.norm() / exact.norm()).item() < 2


@pytest.mark.parametrize("name", ["lenet", pytest.param("squeezenet1_1", marks=pytest.mark.slow)])
def test_the_boundarys_kept_graph_serves_as_a_new_one(name: str) -> None:
    net, images, _ = setting(name, count=24)
    labels = net(images).argmax(dim=1)
    config = with_attack("boundary", linearize_at="overshot")

    def attack(chosen: Tensor) -> Perturbation:
        keep = AttackOptions(record=True, keep_graph=True)
        return deepfool(AttackView(net), images[chosen], config.attack, options=keep)

    # As photos do: some flip in the first iteration, most in the second.
    taken = attack(torch.arange(24)).iterations
    second = (taken == 2).nonzero().squeeze(1)
    chosen = torch.cat([second, (taken == 1).nonzero().squeeze(1)[: len(second)]])
    (crossed,) = attack(chosen).boundary_passes
    assert crossed.samples.tolist() == list(range(len(second)))
    images, labels = images[chosen], labels[chosen]
    whole = gradient_by(net, images, labels, config)
    config.max_images = len(chosen) - 1  # in parts none is kept
    parts = gradient_by(net, images, labels, config)
    assert (whole - parts).norm() < 1e-9 * whole.norm()
