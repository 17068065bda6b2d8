"""Accuracy under every budget, from the distances of one evaluation."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks.norms import per_sample_norm
from pipeline.config import AttackConfig, EvaluationConfig
from pipeline.data.loader import Batch
from pipeline.evaluation import curves
from pipeline.evaluation.evaluator import Evaluator, Finished
from pipeline.evaluation.samples import Samples
from pipeline.models.attack_view import AttackView
from tests.helpers import nets
from tests.helpers.stored_results import PROTOCOL, manifest, samples


def evaluated(net: nn.Module, images: Tensor, labels: Tensor, attack: AttackConfig) -> Finished:
    """Results and perturbations of all images, by row."""
    rows = np.arange(len(images))
    config = EvaluationConfig(attack=attack)
    evaluator = Evaluator(AttackView(net), config, len(rows), frozenset(rows.tolist()))
    finished = [*evaluator.add_batch(Batch(images, labels, rows)), *evaluator.drain()]
    examples = sorted((e for f in finished for e in f.examples), key=lambda e: e.row)
    return Finished(Samples.concatenate(f.samples for f in finished), examples)


def budgets_in_gaps(distance: np.ndarray, reach: float) -> list[float]:
    """Five budgets over the range of the distances, each in the widest gap of its fifth; no
    distance is within the factor ``reach`` above one of them."""
    positive = np.unique(distance[np.isfinite(distance) & (distance > 0)])
    budgets = []
    for part in np.array_split(np.arange(len(positive) - 1), 5):
        widest = part[np.argmax(positive[part + 1] / positive[part])]
        assert positive[widest + 1] / positive[widest] > reach**2
        budgets.append(positive[widest + 1] / reach**1.5)
    return budgets


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_the_curve_of_a_linear_net_is_the_accuracy_after_the_best_attack(p: float) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    net = nets.linear(weight, bias)
    images = torch.randn(80, 1, 3, 4, dtype=torch.float64)
    labels = net(images).argmax(dim=1)
    labels[::7] = (labels[::7] + 1) % 5
    attack = AttackConfig(norm=p, max_iterations=10, overshoot=1e-6)
    measured = evaluated(net, images, labels, attack).samples
    distance, correct = curves.distances(measured), curves.correct_images(measured)
    towards = weight[None] - weight[labels][:, None]  # (N, K, D), of the other logits' lead
    unit = towards.sign() if p == np.inf else towards / towards.norm(dim=2, keepdim=True)
    for eps in budgets_in_gaps(distance, 1 + 1e-5):
        attacked = images.flatten(1)[:, None] + eps * unit.nan_to_num()
        is_robust = (net(attacked.flatten(0, 1)).argmax(dim=1).view(80, 5) == labels[:, None]).all(
            dim=1
        )
        accuracy = float(is_robust.double().mean())
        assert 0 < accuracy < correct.mean()
        assert curves.accuracy_under(distance, correct, eps) == accuracy


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """An MLP trained on points around five centres; 120 of the points, and their labels."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()),
        nn.Linear(24, 5),
    ).double()
    labels = torch.arange(600) % 5
    images = torch.randn(5, 16).double()[labels] + 0.9 * torch.randn(600, 16).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[120:]), labels[120:]).backward()
        optimizer.step()
    return net, images[:120].view(-1, 1, 4, 4), labels[:120]


def shortened(net: nn.Module, images: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """The smallest multiple (N,) of each perturbation that misclassifies, by bisection."""
    low, high = torch.zeros(len(delta)).double(), torch.ones(len(delta)).double()
    for _ in range(40):
        middle = (low + high) / 2
        predicted = net(images + middle[:, None, None, None] * delta).argmax(dim=1)
        is_wrong = predicted != labels
        low, high = middle.where(~is_wrong, low), middle.where(is_wrong, high)
    return high


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_the_curve_of_an_mlp_is_the_accuracy_after_perturbations_of_that_length(
    trained: tuple[nn.Module, Tensor, Tensor], p: float
) -> None:
    net, images, labels = trained
    attack = AttackConfig(norm=p, max_iterations=30)
    measured = evaluated(net, images, labels, attack)
    stored = curves.distances(measured.samples)
    correct = curves.correct_images(measured.samples)
    assert 0.6 < correct.mean() < 1
    delta = torch.from_numpy(np.stack([example.delta for example in measured.examples])).double()
    length = per_sample_norm(delta, p)

    def is_robust(scale: Tensor) -> np.ndarray:
        predicted = net(images + scale[:, None, None, None] * delta).argmax(dim=1)
        return (predicted == labels).numpy() & correct  # a misclassified image is left as it is

    # The attack's own perturbations, of those that the budget allows.
    for eps in budgets_in_gaps(stored, 1 + 1e-6):
        measured_robust = is_robust((length <= eps).double())
        assert np.array_equal(measured_robust, correct & (stored > eps))
        assert curves.accuracy_under(stored, correct, eps) == measured_robust.mean()
        assert is_robust((eps / length).clamp(max=1)).mean() <= measured_robust.mean()
    # Any multiple of them, from the distances to the boundary in the same directions.
    nearest = np.where(correct, shortened(net, images, labels, delta) * length, 0)
    for eps in budgets_in_gaps(nearest, 1 + 1e-6):
        measured_robust = is_robust((eps / length).clamp(max=1))
        assert np.array_equal(measured_robust, correct & (nearest > eps))
        assert curves.accuracy_under(nearest, correct, eps) == measured_robust.mean()


def only_curve(stored: Samples, *, relative: bool = False) -> curves.Curve:
    (line,) = curves.curves_of(stored, PROTOCOL, relative=relative).values()
    return line


def test_what_is_no_distance() -> None:
    stored = samples(
        [0, 1, 2, 3, 4, 5, 6],
        prediction=[0, 1, 0, 0, -1, 0, 0],
        flipped=[True, True, False, True, True, True, True],
        stuck=[False, False, False, True, False, False, False],
        image_norm=[2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0],
        perturbation_norm=[1.0, 9.0, 9.0, np.nan, 9.0, np.nan, 3.0],
    )
    inf = np.inf
    assert curves.distances(stored).tolist() == [1, 0, inf, inf, 0, 0, 3]
    assert curves.distances(stored, relative=True).tolist() == [0.5, 0, inf, inf, 0, 0, inf]
    line = only_curve(stored)
    assert line.budget.tolist() == [0, 1, 3]
    assert line.num_robust.tolist() == [4, 3, 2]
    assert (line.num_unbounded, line.num_images) == (2, 7)
    assert only_curve(stored, relative=True).num_unbounded == 3


def test_an_image_is_lost_at_its_distance_and_not_before() -> None:
    distance, correct = np.array([0.5, 0.5, 1.5, np.inf, 7.0]), np.array([True] * 4 + [False])
    eps = np.array([[0.0, 0.4999], [0.5, 1.49], [1.5, 1e9]])
    expected = np.array([[0.8, 0.8], [0.4, 0.4], [0.2, 0.2]])
    assert np.array_equal(curves.accuracy_under(distance, correct, eps), expected)
    assert curves.accuracy_under(distance, correct, 0.5) == 0.4
    assert curves.accuracy_under(np.array([np.nan]), np.array([True]), 0.0) == 0


def test_a_long_curve_keeps_exact_points() -> None:
    rng = np.random.default_rng(0)
    distance, correct = rng.lognormal(size=50_000), rng.random(50_000) < 0.9
    distance[:100] = np.inf
    line = curves.curve(distance, correct)
    assert len(line.budget) == curves.MAX_POINTS
    assert (line.budget[0], line.budget[-1]) == (0, distance[correct & (distance < np.inf)].max())
    assert line.accuracy[0] == correct.mean()
    for position in range(0, 1000, 37):
        expected = np.mean(correct & (distance > line.budget[position]))
        assert line.accuracy[position] == pytest.approx(expected, abs=1e-15)
    assert np.abs(np.diff(line.accuracy)).max() < 0.002  # evenly spaced quantiles
    few = curves.curve(distance[:300], correct[:300])
    assert len(few.budget) == 1 + np.sum(correct[:300] & (distance[:300] < np.inf))


def test_nothing_to_lose() -> None:
    line = curves.curve(np.array([np.inf, 0.0]), np.array([True, False]))
    assert (line.budget.tolist(), line.accuracy.tolist()) == ([0.0], [0.5])
    figure = curves.draw(samples([1, 3]), replace(PROTOCOL, norm="inf"))  # both misclassified
    assert [axis.get_xlabel()[:6] for axis in figure.axes] == ["budget"] * 2


def test_files_and_figure_hold_the_curve(tmp_path: Path) -> None:
    rows = list(range(20))
    stored = samples(rows, perturbation_norm=[0.1 * 1.3**row for row in rows])
    curves.write(tmp_path, stored, PROTOCOL)
    figure = curves.draw(stored, PROTOCOL)
    for relative, axis in zip((False, True), figure.axes, strict=True):
        with (tmp_path / curves.FILES[relative]).open() as file:
            points = list(csv.DictReader(file))
        assert list(points[0]) == ["budget", "accuracy", "num_robust"]
        line = only_curve(stored, relative=relative)
        assert [float(point["budget"]) for point in points] == line.budget.tolist()
        assert [float(point["accuracy"]) for point in points] == line.accuracy.tolist()
        assert [int(point["num_robust"]) for point in points] == list(range(10, -1, -1))
        x, y = axis.lines[0].get_data()
        assert x[:-1].tolist() == line.budget.tolist()
        assert y[:-1] == pytest.approx(100 * line.accuracy)


SEVERAL = manifest(attack=AttackConfig(method="deepfool+superdeepfool+ddn")).identity.protocol


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_curves_by_method_are_those_of_evaluations_by_one_method(
    trained: tuple[nn.Module, Tensor, Tensor], p: float
) -> None:
    net, images, labels = (trained[0], *(part[:40] for part in trained[1:]))

    def measured(method: str) -> Samples:
        attack = AttackConfig(method=method, norm=p, descent_steps=20)
        return evaluated(net, images, labels, attack).samples

    together = curves.curves_of(measured("deepfool+superdeepfool+ddn"), SEVERAL)
    assert list(together) == ["best", "deepfool", "superdeepfool", "ddn"]
    best = together.pop("best")
    assert len({line.num_robust.tobytes() for line in together.values()}) == 3
    for name, line in together.items():
        alone = measured(name)
        assert np.all(best.num_robust <= line.num_robust)
        # Between the breakpoints: distances may differ in their last bits.
        budget = (line.budget[:-1] + line.budget[1:]) / 2
        distance, correct = curves.distances(alone), curves.correct_images(alone)
        accuracy = curves.accuracy_under(distance, correct, budget)
        assert np.array_equal(accuracy, line.accuracy[:-1]), name


def by_three(rows: int) -> Samples:
    """Results by three methods; the first does not flip row 2, and no method flips row 4."""
    rng = np.random.default_rng(0)
    distances = rng.lognormal(size=(rows, 3))
    distances[2, 0] = distances[4] = np.inf
    smallest = distances.min(axis=1)
    return samples(
        list(range(rows)),
        prediction=np.zeros(rows),
        distances=distances,
        flipped=np.isfinite(smallest),
        perturbation_norm=np.where(np.isfinite(smallest), smallest, 5.0),
    )


@pytest.mark.parametrize("relative", [False, True])
def test_files_and_figure_hold_a_curve_for_each_method(tmp_path: Path, relative: bool) -> None:
    stored = by_three(30)
    curves.write(tmp_path, stored, SEVERAL)
    with (tmp_path / curves.FILES[relative]).open() as file:
        head, *lines = csv.reader(file)
    names = ["deepfool", "superdeepfool", "ddn"]
    assert head == ["budget", "accuracy", "num_robust", *(f"accuracy_{n}" for n in names)]
    budget, accuracy, num_robust, *by_method = np.array(lines, float).T
    norm = 2.0 if relative else 1.0
    distances = np.column_stack([stored.distances.min(axis=1), stored.distances]) / norm
    finite = distances[np.isfinite(distances)]
    assert budget == pytest.approx([0, *np.unique(finite)])
    assert np.array_equal(num_robust, (distances[:, :1] > budget).sum(axis=0))
    for column, distance in zip((accuracy, *by_method), distances.T, strict=True):
        assert np.array_equal(column, (distance[:, None] > budget).mean(axis=0))
    axis = curves.draw(stored, SEVERAL).axes[relative]
    labels = [line.get_label() for line in axis.lines]
    assert labels[:2] == [
        "best: 1 robust at every budget",
        "deepfool: 2 robust at every budget",
    ]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axis.lines}) == 4
    assert axis.lines[1].get_ydata()[:5] == pytest.approx(100 * by_method[0][:5])


def test_long_curves_share_their_budgets() -> None:
    stored = by_three(2000)
    lines = curves.curves_of(stored, SEVERAL)
    budget = lines["best"].budget
    assert len(budget) == curves.MAX_POINTS
    assert budget[-1] == stored.distances[np.isfinite(stored.distances)].max()
    assert all(np.array_equal(line.budget, budget) for line in lines.values())
    expected = (stored.distances[:, 2:] > budget).mean(axis=0)
    assert np.array_equal(lines["ddn"].accuracy, expected)


def test_a_perturbation_that_is_not_finite_is_no_robust_image() -> None:
    stored = samples([0, 2], prediction=[0, 0], distances=[[1.0, np.nan, 2.0], [3.0, np.inf, 4.0]])
    lines = curves.curves_of(stored, SEVERAL)
    assert lines["superdeepfool"].num_robust.tolist() == [1] * 5
