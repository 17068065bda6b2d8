"""The attacks by name: superdeepfool, ddn, fmn, best, and what is measured with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks.norms import dual_exponent, per_sample_norm
from pipeline.attacks.search import SearchState
from pipeline.attacks.stages import RandomStart
from pipeline.config import BEST, AttackConfig, DataConfig, EvaluationConfig, RuntimeConfig
from pipeline.config.checks import OptionError
from pipeline.evaluation import attack_space
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.statistics import distance_warnings, summarize
from pipeline.models.attack_view import AttackView
from tests.helpers import nets
from tests.helpers.attack_runs import finished, measured
from tests.helpers.exhaustive import exact_distance


def linear_net(num_inputs: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, num_classes)).requires_grad_(False)


def smallest_in_linear_net(net: nn.Module, images: Tensor, p: float) -> Tensor:
    layer = net[1]
    logits = net(images)
    clean = logits.argmax(dim=1)
    w = layer.weight[None] - layer.weight[clean][:, None]
    f = logits - logits.gather(1, clean[:, None])
    norm = torch.linalg.vector_norm(w, dual_exponent(p), dim=2)
    return (f.abs() / norm).nan_to_num(torch.inf).scatter(1, clean[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize("p", [2.0, torch.inf])
@pytest.mark.parametrize(
    ("method", "side", "num_classes", "size"),
    [
        *((method, *shape) for method in BEST for shape in ((4, 3, 7), (16, 10, 64))),
        ("best", 16, 10, 64),
    ],
)
def test_linear_nets_by_the_closed_form(
    method: str, p: float, side: int, num_classes: int, size: int
) -> None:
    torch.manual_seed(0)
    net = linear_net(3 * side * side, num_classes)
    images = torch.randn(40, 3, side, side)
    attack = AttackConfig(method=method, norm=p, overshoot=0.005, descent_steps=100)
    samples = measured(AttackView(net), attack, images, size)
    ratio = samples.perturbation_norm / smallest_in_linear_net(net, images, p).numpy()
    assert samples.flipped.all()
    assert ratio.min() > 0.999
    assert ratio.max() < 1.01


def trained_net(num_inputs: int, num_hidden: int) -> tuple[nn.Module, Tensor]:
    """A two-layer net that tells four classes of two clusters each apart, and 200 images."""
    torch.manual_seed(0)
    centers = 1.5 * torch.randn(8, num_inputs)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        cluster = torch.randint(8, (number,))
        points = centers[cluster] + 0.7 * torch.randn(number, num_inputs)
        return points.view(number, 1, 1, num_inputs), cluster % 4

    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(num_inputs, num_hidden), nn.ReLU(), nn.Linear(num_hidden, 4))
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(600):
        images, labels = draw(256)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.requires_grad_(False), draw(200)[0]


def test_two_layer_nets_by_enumeration_of_their_regions() -> None:
    net, images = trained_net(12, 8)
    exact = np.array([exact_distance(net, image[None]).distance for image in images])
    attack = AttackConfig(method="best", restarts=16, max_projections=30, descent_steps=30)
    samples = measured(AttackView(net), attack, images, 100)
    ratio = samples.perturbation_norm / exact
    superdeepfool = samples.distances[:, 1] / exact
    assert superdeepfool.min() > 0.999
    assert np.mean(superdeepfool < 1.01) >= 0.95
    assert np.mean(ratio < 1.01) >= 0.95


def test_best_is_the_smallest_of_its_parts_and_deepfool_is_as_alone() -> None:
    torch.manual_seed(0)
    net, images = nets.smooth().requires_grad_(False), 2 * torch.randn(30, 3, 32, 32)
    alone = measured(AttackView(net), AttackConfig(), images, 8)
    best = measured(AttackView(net), AttackConfig(method="best", descent_steps=40), images, 8)
    assert best.distances.shape == (30, 4)
    assert np.array_equal(best.perturbation_norm, best.distances.min(axis=1))
    assert np.array_equal(best.winner, best.distances.argmin(axis=1))
    assert np.array_equal(best.distances[alone.flipped, 0], alone.perturbation_norm[alone.flipped])
    assert alone.distances.shape == (30, 0)
    assert best.perturbation_norm.mean() < 0.97 * alone.perturbation_norm.mean()


@pytest.mark.parametrize("p", [2.0, torch.inf, 1.5])
def test_projections_are_shorter_than_deepfool_in_every_norm(p: float) -> None:
    torch.manual_seed(0)
    net, images = nets.smooth().requires_grad_(False), 2 * torch.randn(30, 3, 32, 32)
    attack = AttackConfig(method="deepfool+superdeepfool", norm=p, max_iterations=50)
    samples = measured(AttackView(net), attack, images)
    assert (samples.distances[:, 1] <= samples.distances[:, 0] * (1 + 1e-6)).all()
    assert samples.distances[:, 1].mean() < 0.98 * samples.distances[:, 0].mean()


@pytest.mark.parametrize("method", ["deepfool", "best"])
def test_perturbations_change_the_class_inside_the_bounds(method: str) -> None:
    torch.manual_seed(0)
    net, images = nets.smooth().requires_grad_(False), torch.rand(20, 3, 32, 32)
    view = AttackView(net, bounds=(0.0, 1.0))
    config = EvaluationConfig(attack=AttackConfig(method=method, descent_steps=30))
    for part in finished(view, config, images, 8):
        for example in part.examples:
            perturbed = torch.from_numpy(example.image + example.delta)
            assert perturbed.min() >= -1e-6
            assert perturbed.max() <= 1 + 1e-6
            if part.samples.flipped[np.searchsorted(part.samples.row, example.row)]:
                logits = view(perturbed[None])[0]  # in another batch, to the last bits only
                assert logits[example.after] > logits[example.before] - 1e-5
                assert example.after != example.before


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    # Without local response normalisation: the last bits of powers depend on the batch.
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 12, 3, stride=2), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)),
    ).requires_grad_(False)
    images, references = 2 * torch.randn(70, 3, 32, 32), torch.randn(5, 3, 32, 32)
    attack = AttackConfig(method="best", descent_steps=12)
    config = EvaluationConfig(batch_size=32, attack=attack)
    view = attack_space.attack_view_of(net, DataConfig(), config, torch.device("cpu"))
    whole = measured(view, attack, images, 32, references)
    order = torch.randperm(70)
    other = measured(view, attack, images[order], 32, references)
    other = other.take(np.argsort(order.numpy()))
    for name, column in whole.to_dict().items():
        if name != "row":
            assert np.array_equal(other.to_dict()[name], column, equal_nan=True), name


@pytest.mark.parametrize("p", [2.0, torch.inf, 1.5])
def test_random_starts_are_at_their_distance_in_every_norm(p: float) -> None:
    images = torch.randn(3, 3, 8, 8)
    label, key = torch.zeros(3, dtype=torch.long), torch.arange(3)
    state = SearchState.before_attack(key, images, label, label - 1, num_methods=1)
    state = replace(state, distances=torch.tensor([[2.0], [4.0], [torch.inf]]).double())
    start = RandomStart(p, method=0, number=1).start(state).state
    norm = per_sample_norm(start.delta, p)
    assert torch.allclose(norm[:2], 0.7 * torch.tensor([2.0, 4.0]), rtol=1e-5)
    assert torch.allclose(norm[2], 0.1 * per_sample_norm(images, p)[2], rtol=1e-5)
    again = RandomStart(p, method=0, number=1).start(state.take(torch.tensor([2, 1]))).state
    assert torch.equal(again.delta, start.delta[[2, 1]])


def test_an_attack_that_fails_keeps_the_earlier_perturbation() -> None:
    torch.manual_seed(0)
    images, label = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    state = SearchState.before_attack(torch.arange(4), images, label, label - 1, num_methods=2)
    first = replace(state, delta=images.clone()).recorded(0, 2.0)
    second = first.restarted().recorded(1, 2.0)
    assert torch.equal(second.smallest, images)
    assert torch.equal(second.smallest_norm, per_sample_norm(images.double()))
    assert not second.flipped.any()


def test_queries_are_counted() -> None:
    torch.manual_seed(0)
    net, images = linear_net(48, 3), torch.randn(10, 3, 4, 4)
    view = AttackView(net)
    deepfool = measured(view, AttackConfig(), images)
    # The clean forward, two gradients and the test: the class changes after one iteration.
    assert set(deepfool.queries) == {4}
    ddn = measured(view, AttackConfig(method="ddn", descent_steps=9), images)
    # Clean forward; first step (3); steps; last test with its gradient; line search.
    assert set(ddn.queries) == {1 + 3 + 2 * 9 + 2 + 7}


def test_the_cosine_is_1_at_a_smallest_perturbation() -> None:
    torch.manual_seed(0)
    net, images = nets.smooth().requires_grad_(False), 2 * torch.randn(30, 3, 32, 32)
    references = torch.randn(4, 3, 32, 32)
    deepfool = measured(AttackView(net), AttackConfig(max_iterations=50), images, 20, references)
    attack = AttackConfig(method="best", max_iterations=50, descent_steps=60)
    best = measured(AttackView(net), attack, images, 20, references)
    assert best.cosine.mean() > 0.99 > deepfool.cosine.mean()
    assert (best.cosine < 1 + 1e-5).all()


def test_the_cosine_leaves_out_values_at_their_bounds() -> None:
    torch.manual_seed(0)
    net = linear_net(48, 3)
    images = torch.rand(20, 3, 4, 4).mul(1.2).sub(0.1).clamp(0, 1)
    view = AttackView(net, bounds=(0.0, 1.0))
    samples = measured(view, AttackConfig(method="ddn"), images, 20, images[:4])
    assert samples.flipped.all()
    np.testing.assert_allclose(samples.cosine, 1.0, atol=0.01)


class Saturated(nn.Module):
    """A net whose gradient vanishes: its logits are rounded."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return (1000.0 * self.net(x)).round()


def test_without_gradients_the_distance_is_that_of_the_bound() -> None:
    torch.manual_seed(0)
    net = Saturated(linear_net(48, 3))
    images = 5 * torch.randn(20, 3, 4, 4)
    view = AttackView(net)
    references = 5 * torch.randn(16, 3, 4, 4)
    deepfool = measured(view, AttackConfig(), images, 20, references)
    best = measured(view, AttackConfig(method="best"), images, 20, references)
    assert not deepfool.flipped.any()
    assert deepfool.stuck.all()
    assert np.isfinite(deepfool.upper_bound).all()
    assert np.array_equal(deepfool.best_norm, deepfool.upper_bound)
    assert best.flipped.all()
    exact = smallest_in_linear_net(net.net, images, 2.0).numpy()
    assert (best.perturbation_norm > 0.9 * exact).all()
    assert np.allclose(best.perturbation_norm, deepfool.upper_bound, rtol=0.1)
    assert (best.perturbation_norm <= best.upper_bound).all()
    assert any("had no gradient" in text for text in warnings_about(deepfool, "deepfool"))


class Rectangle(nn.Module):
    """Two logits that only vary between two values of the mean: elsewhere no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([mean.clamp(0.4, 0.6) - 0.5, torch.zeros_like(mean)], dim=1)


@pytest.mark.parametrize("method", ["ddn", "fmn"])
def test_a_descent_starts_from_a_line_where_the_image_has_no_gradient(method: str) -> None:
    torch.manual_seed(0)
    images = 0.1 * torch.rand(8, 1, 4, 4)
    references = torch.ones(3, 16).index_fill(1, torch.arange(4), 0.0).reshape(3, 1, 4, 4)
    attack = AttackConfig(method=method, num_candidates=2)
    samples = measured(AttackView(Rectangle()), attack, images, 8, references)
    exact = (0.5 - images.mean(dim=(1, 2, 3))).numpy() * 4  # of the mean, times sqrt(16)
    assert (samples.upper_bound > 1.01 * exact).all()
    np.testing.assert_allclose(samples.perturbation_norm, exact, rtol=0.005)
    assert (samples.winner == 0).all()
    unguided = measured(AttackView(Rectangle()), attack, images, 8)
    assert not unguided.flipped.any()


def test_without_gradients_the_cosine_within_bounds_is_zero() -> None:
    torch.manual_seed(0)
    images, references = (5 * torch.randn(24, 3, 4, 4)).clamp(-3, 3).split([8, 16])
    view = AttackView(Saturated(linear_net(48, 3)), bounds=(-3.0, 3.0))
    samples = measured(view, AttackConfig(method="ddn"), images, 8, references)
    assert samples.flipped.any()
    assert (samples.cosine[samples.flipped] == 0).all()


class Misleading(nn.Module):
    """Two classes by the mean; the gradient is that of a much steeper line."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.5
        logit = mean.sign() - 30.0 * mean.detach() + 30.0 * mean
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


def test_an_image_that_projections_do_not_flip_is_descended() -> None:
    torch.manual_seed(0)
    images = 0.2 * torch.rand(8, 1, 4, 4)
    attack = AttackConfig(method="superdeepfool", num_candidates=2)
    samples = measured(AttackView(Misleading()), attack, images, 8)
    assert samples.flipped.all()
    exact = (0.5 - images.mean(dim=(1, 2, 3))).numpy() * 4
    np.testing.assert_allclose(samples.perturbation_norm, exact, rtol=0.01)


def warnings_about(samples: Samples, method: str) -> list[str]:
    evaluation = EvaluationConfig(attack=AttackConfig(method=method))
    protocol = evaluation_protocol(evaluation, RuntimeConfig(), 10)
    return list(distance_warnings(summarize(samples, protocol)))


def changed(samples: Samples, **columns: object) -> Samples:
    arrays = {name: np.broadcast_to(value, len(samples)) for name, value in columns.items()}
    return samples.with_columns(arrays)


def test_what_is_warned_of() -> None:
    torch.manual_seed(0)
    net, images = linear_net(48, 3), torch.randn(100, 3, 4, 4)
    references = torch.randn(16, 3, 4, 4)
    clean = measured(AttackView(net), AttackConfig(), images, 50, references)
    assert not warnings_about(clean, "deepfool")
    two = np.arange(100) < 2
    (text,) = warnings_about(changed(clean, flipped=~two), "deepfool")
    assert text.startswith("the class of 2 of 100 images did not change")
    longer = np.where(two, 1.1 * clean.upper_bound, clean.perturbation_norm)
    (text,) = warnings_about(changed(clean, perturbation_norm=longer), "deepfool")
    assert text.startswith("the perturbations of 2 of 100 images are longer")
    pair = measured(AttackView(net), AttackConfig(method="deepfool+superdeepfool"), images, 50)
    worse = pair.distances * np.array([1.3, 1.0])
    (text,) = warnings_about(replace(pair, distances=worse), "deepfool+superdeepfool")
    assert "DeepFool's mean distance is 1.33 times the best" in text


def test_without_an_image_of_another_class_there_is_no_bound() -> None:
    torch.manual_seed(0)
    net, images = linear_net(48, 3), torch.randn(10, 3, 4, 4)
    label = net(images).argmax(dim=1)
    references = images[label == label[0]][:1]
    samples = measured(AttackView(net), AttackConfig(), images, 20, references)
    assert np.array_equal(np.isnan(samples.upper_bound), label.numpy() == int(label[0]))


@pytest.mark.parametrize("name", ["deepfol", "deepfool+", "best+deepfool", "", "ddn+x"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="method"):
        AttackConfig(method=name)


def test_methods_run_in_a_fixed_order_without_duplicates() -> None:
    assert AttackConfig(method="ddn+deepfool+ddn").methods == ["deepfool", "ddn"]
    assert AttackConfig(method="best").methods == list(BEST)


def test_norms_of_a_state_are_exact() -> None:
    torch.manual_seed(0)
    net, images = nets.smooth().requires_grad_(False), 2 * torch.randn(10, 3, 32, 32)
    config = EvaluationConfig(attack=AttackConfig(method="superdeepfool"))
    for part in finished(AttackView(net), config, images, 8):
        for example in part.examples:
            norm = part.samples.perturbation_norm[np.searchsorted(part.samples.row, example.row)]
            expected = per_sample_norm(torch.from_numpy(example.delta)[None].double())
            assert norm == pytest.approx(float(expected), rel=1e-6)
