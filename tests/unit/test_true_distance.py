"""Training on the true distance: its value, and its gradient against finite differences."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import AttackConfig, RegularizerConfig
from pipeline.config.checks import OptionError
from pipeline.models.attack_view import AttackView
from pipeline.regularizer.penalty import robustness
from tests.helpers.exhaustive import exact_distance


def options(projections: int) -> RegularizerConfig:
    attack = AttackConfig(
        method="superdeepfool",
        max_projections=projections,
        max_iterations=30,
        linearize_at="overshot",
        candidate_search="pruned",
    )
    return RegularizerConfig(gradient="boundary", attack=attack)


def small_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def images_with_exact_distance(net: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Images for which the projections end at the nearest boundary point, and the distances."""
    torch.manual_seed(seed)
    images = torch.randn(12, 1, 3, 4, dtype=torch.float64)
    exact = torch.tensor([exact_distance(net, x[None]).distance for x in images]).double()
    labels = net(images).argmax(dim=1)
    result = robustness(AttackView(net), images, labels, options(40))
    distance = result.ratio.detach() * images.flatten(1).norm(dim=1)
    nearest = (distance / exact - 1.0).abs() < 1e-6
    return images[nearest], exact[nearest]


@pytest.mark.parametrize(("seed", "at_once"), [(0, None), (1, 2)])
def test_the_gradient_is_that_of_the_exact_distance(seed: int, at_once: int | None) -> None:
    net = small_net(seed)
    images, exact = images_with_exact_distance(net, seed)
    assert len(images) >= 3
    labels = net(images).argmax(dim=1)
    norm = images.flatten(1).norm(dim=1)
    result = robustness(AttackView(net), images, labels, options(40), at_once=at_once)
    (result.ratio * norm).sum().backward()
    step = 1e-6
    for parameter in net.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for position in range(0, len(flat), 7):
            value = float(flat[position])
            sums = []
            for shift in (step, -step):
                flat[position] = value + shift
                sums.append(sum(exact_distance(net, x[None]).distance for x in images))
            flat[position] = value
            expected = (sums[0] - sums[1]) / (2 * step)
            assert float(gradient[position]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert torch.allclose(result.ratio * norm, exact, rtol=1e-5)


def test_misclassified_images_measure_the_way_to_their_label() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images = torch.randn(20, 1, 3, 4, dtype=torch.float64)
    clean = net(images).argmax(dim=1)
    labels = (clean + 1) % 3
    result = robustness(AttackView(net), images, labels, options(2))
    # Where no third class is in the way, it is the distance to the boundary of the two classes.
    w = net[1].weight[labels] - net[1].weight[clean]
    logits = net(images)
    f = logits.gather(1, labels[:, None]) - logits.gather(1, clean[:, None])
    pair = f[:, 0].abs() / w.norm(dim=1)
    distance = result.ratio.detach() * images.flatten(1).norm(dim=1)
    assert not result.correct.any()
    assert torch.isclose(distance, pair, rtol=1e-6).sum() >= 10
    deepfool = RegularizerConfig(attack=AttackConfig(max_iterations=30, overshoot=0.0))
    longest = robustness(AttackView(net), images, labels, deepfool).ratio.detach()
    assert (result.ratio <= longest * (1 + 1e-9)).all()


@pytest.mark.parametrize("projections", [1, 3])
def test_more_projections_come_nearer_to_the_exact_distance(projections: int) -> None:
    net = small_net(1)
    images, exact = images_with_exact_distance(net, 1)
    labels = net(images).argmax(dim=1)
    norm = images.flatten(1).norm(dim=1)
    deepfool = RegularizerConfig(attack=AttackConfig(max_iterations=30))
    before = robustness(AttackView(net), images, labels, deepfool).ratio * norm
    after = robustness(AttackView(net), images, labels, options(projections)).ratio * norm
    assert (after / exact - 1).abs().mean() < 0.7 * (before / exact - 1).abs().mean()


@pytest.mark.parametrize(("at_once", "alive"), [(None, 1), (2, 1)])
def test_one_graph_is_alive_at_a_time(at_once: int | None, alive: int) -> None:
    net = small_net(0)
    images = torch.randn(8, 1, 3, 4, dtype=torch.float64)
    labels = net(images).argmax(dim=1)
    graphs: list[weakref.ref] = []
    most = 0

    def count(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
        nonlocal most
        graphs[:] = [graph for graph in graphs if graph() is not None]
        if logits.grad_fn is not None:
            graphs.append(weakref.ref(logits))
        most = max(most, len(graphs))

    net.register_forward_hook(count)
    result = robustness(AttackView(net), images, labels, options(3), at_once=at_once)
    result.ratio.sum().backward()
    assert most == alive


def test_an_image_without_a_gradient_has_none_in_the_penalty() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    torch.nn.init.zeros_(net[1].weight)
    images, labels = torch.randn(4, 1, 3, 4), torch.tensor([0, 1, 2, 0])
    result = robustness(AttackView(net), images, labels, options(1))
    result.ratio.sum().backward()
    assert torch.equal(result.ratio, torch.zeros(4))
    assert all(not p.grad.any() for p in net.parameters())


def test_gradients_and_attacks_that_do_not_fit_are_refused() -> None:
    superdeepfool = AttackConfig(method="superdeepfool")
    with pytest.raises(OptionError, match="gradient"):
        RegularizerConfig(attack=superdeepfool)
    with pytest.raises(OptionError, match="method"):
        RegularizerConfig(gradient="boundary", attack=AttackConfig(method="ddn"))
