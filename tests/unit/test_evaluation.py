"""What evaluation measures of a net, batch by batch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import (
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    FgsConfig,
    RunConfig,
    RuntimeConfig,
)
from pipeline.data.index import Index
from pipeline.data.loader import Batch
from pipeline.errors import UserError
from pipeline.evaluation import attack_space
from pipeline.evaluation.evaluator import Evaluator, Finished
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.evaluation.samples import Samples
from pipeline.evaluation.statistics import summarize
from pipeline.models.attack_view import AttackView
from pipeline.runtime.distributed import DistributedContext
from tests.helpers import nets

CPU = torch.device("cpu")


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    for begin in range(0, len(images), size):
        rows = np.arange(begin, min(begin + size, len(images)))
        yield Batch(images[rows], labels[rows], rows)


def run(
    view: AttackView, config: EvaluationConfig, images: Tensor, labels: Tensor, size: int
) -> list[Finished]:
    evaluator = Evaluator(view, config, size, frozenset([3]))
    finished = [f for batch in batches(images, labels, size) for f in evaluator.add_batch(batch)]
    return [*finished, *evaluator.drain()]


class Counting(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("candidate_search", ["exhaustive", "pruned"])
@pytest.mark.parametrize("target_class", ["reselect", "fixed"])
def test_the_pool_finds_what_each_image_alone_has(candidate_search: str, target_class: str) -> None:
    torch.manual_seed(0)
    net = nets.smooth().double()
    images, labels = 2 * torch.randn(50, 3, 32, 32, dtype=torch.float64), torch.arange(50) % 10
    attack = AttackConfig(
        max_iterations=20, candidate_search=candidate_search, target_class=target_class
    )
    config = EvaluationConfig(attack=attack)
    finished = run(AttackView(net), config, images, labels, 8)
    samples = Samples.concatenate(f.samples for f in finished)
    together = deepfool(AttackView(net), images, attack)
    assert samples.row.tolist() == list(range(50))
    assert samples.steps.tolist() == together.iterations.tolist()
    assert samples.adversarial.tolist() == together.prediction.tolist()
    assert samples.flipped.tolist() == together.flipped.tolist()
    assert np.allclose(samples.perturbation_norm, per_sample_norm(together.delta), rtol=1e-8)
    assert samples.prediction.tolist() == together.clean.tolist()
    alone = Samples.concatenate(f.samples for f in run(AttackView(net), config, images, labels, 1))
    assert samples.queries.tolist() == alone.queries.tolist()
    logits = net(images)
    rank = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    assert samples.label_rank.tolist() == rank.tolist()
    (example,) = (e for f in finished for e in f.examples)
    assert example.row == 3
    assert np.allclose(example.image, images[3].float())
    assert np.allclose(example.delta, together.delta[3].float(), atol=1e-6)
    assert (example.before, example.after) == (together.clean[3], together.prediction[3])


def test_batches_stay_full() -> None:
    torch.manual_seed(0)
    net = Counting(nets.smooth())
    images, labels = 3 * torch.randn(100, 3, 32, 32), torch.zeros(100, dtype=torch.long)
    config = EvaluationConfig(attack=AttackConfig(max_iterations=12, overshoot=0.0))
    samples = Samples.concatenate(
        f.samples for f in run(AttackView(net), config, images, labels, 20)
    )
    full = np.array(net.sizes) == 20
    longest = samples.steps.max()
    # Each batch for itself, most iterations would be of fewer.
    alone = [
        (samples.steps[k : k + 20] > i).sum() for k in range(0, 100, 20) for i in range(longest)
    ]
    assert sum(0 < size < 20 for size in alone) > 10
    assert full[: -2 * longest].all()
    assert sum(net.sizes) == 2 * samples.steps.sum()  # each iteration linearises and tests


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    net = nets.smooth().requires_grad_(False)
    images, labels = 2 * torch.randn(70, 3, 32, 32), torch.arange(70) % 10
    config = EvaluationConfig(batch_size=32, fgs=FgsConfig(eps=[0.01, 0.1], search=True))
    results = []
    for order in (torch.arange(70), torch.randperm(70), torch.arange(69, -1, -1)):
        view = attack_space.attack_view_of(net, DataConfig(), config, CPU)
        parts = [f.samples for f in run(view, config, images[order], labels[order], 32)]
        samples = Samples.concatenate(parts)
        results.append(samples.take(np.argsort(order.numpy()[samples.row])))
    for other in results[1:]:
        for name, column in vars(results[0]).items():
            if name != "row":
                equal_nan = column.dtype == float
                assert np.array_equal(getattr(other, name), column, equal_nan=equal_nan), name


def test_lower_bounds_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    view = AttackView(nets.dropout_mlp(), min_batch_size=16)
    images, labels = torch.randn(12, 1, 28, 28), torch.arange(12) % 10
    config = EvaluationConfig(lower_bound=True)
    samples, others = (
        Samples.concatenate(f.samples for f in run(view, config, images, labels, size))
        for size in (12, 5)
    )
    assert (samples.lower_bound > 0).all()
    assert (samples.lower_bound <= samples.perturbation_norm).all()
    assert (samples.lower_bound == others.lower_bound).all()
    assert (samples.bound_exact == others.bound_exact).all()


class Partly(nn.Module):
    """Image k of a batch tells by its first pixel what goes wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(11, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        kind, seen = x[:, 0].detach(), x[:, 1:]
        logits = self.linear(seen).clone()
        logits[kind == 1] = logits[kind == 1].detach()  # no gradient
        logits[kind == 2] = torch.nan
        third = seen[kind == 3]  # a gradient that is not finite, where the value is
        logits[kind == 3] += torch.sqrt((third - third.detach()).abs()).sum(dim=1, keepdim=True)
        return logits


def test_images_without_a_gradient_are_counted_apart() -> None:
    torch.manual_seed(1)
    images = torch.randn(40, 1, 3, 4)
    images[:, 0, 0, 0] = torch.arange(40) % 4
    net = Partly()
    labels = net(images).argmax(dim=1)
    config = EvaluationConfig(fgs=FgsConfig(eps=[0.01], search=True))
    finished = run(AttackView(net), config, images, labels, 16)
    samples = Samples.concatenate(f.samples for f in finished)
    kind = np.arange(40) % 4
    assert (samples.stuck == (kind > 0)).all()
    assert ((samples.prediction == -1) == (kind == 2)).all()
    assert np.isfinite(samples.perturbation_norm).all()
    statistics = summarize(samples, evaluation_protocol(config, RuntimeConfig(), 10))
    assert statistics.num_without_gradient == 20
    assert statistics.num_nonfinite == 10
    assert statistics.accuracy == 0.75
    ratio = samples.perturbation_norm[kind == 0] / samples.image_norm[kind == 0]
    assert statistics.rho == pytest.approx(ratio.mean())
    assert statistics.rho > 0
    assert np.isfinite(list(statistics.ratio_quantiles.values())).all()
    assert (samples.fgs_eps[kind == 1] == np.inf).all()
    assert (samples.fgs_eps[kind == 2] == 0).all()


def test_fewer_classes_than_candidates() -> None:
    torch.manual_seed(0)
    net = nets.linear(torch.randn(3, 12), torch.randn(3))
    images, labels = torch.randn(20, 1, 3, 4), torch.arange(20) % 3
    config = EvaluationConfig(attack=AttackConfig(num_candidates=10))
    samples = Samples.concatenate(
        f.samples for f in run(AttackView(net), config, images, labels, 20)
    )
    assert samples.flipped.all()
    assert evaluation_protocol(config, RuntimeConfig(), 3).num_candidates == 3


@pytest.mark.parametrize(
    ("method", "limits"),
    [
        ("deepfool", "q 3, at most 7 iterations, "),
        ("ddn+superdeepfool", "q 3, at most 7 iterations, "),
        ("ddn+fmn", ""),
        ("foolbox.attacks:L2CarliniWagnerAttack", ""),
    ],
)
def test_limits_of_deepfool_are_said_where_it_runs(method: str, limits: str) -> None:
    config = EvaluationConfig(
        attack=AttackConfig(method=method, num_candidates=5, max_iterations=7)
    )
    assert evaluation_protocol(config, RuntimeConfig(), 3).deepfool_limits == limits


class Hungry(nn.Module):
    """Asks for more memory than there is when it gets more than ``most`` images."""

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most, self.sizes = net, most, []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            torch.empty(2**50)
        self.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize(
    ("most", "size"), [(7, 5), pytest.param(1, 1, marks=pytest.mark.slow), (20, 20)]
)
def test_batches_are_halved_when_memory_runs_out(
    most: int, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = nets.smooth().double()
    images, labels = 2 * torch.randn(50, 3, 32, 32, dtype=torch.float64), torch.arange(50) % 10
    config = EvaluationConfig(fgs=FgsConfig(eps=[0.1], search=True))
    hungry = Hungry(net, most)
    finished = run(AttackView(hungry, min_batch_size=16), config, images, labels, 20)
    plain = run(AttackView(net), config, images, labels, 20)
    samples, expected = (Samples.concatenate(f.samples for f in fs) for fs in (finished, plain))
    for name, column in vars(expected).items():
        assert np.allclose(getattr(samples, name), column, rtol=1e-8, equal_nan=True), name
    assert max(hungry.sizes) == size
    said = capfd.readouterr().err.splitlines()
    steps = {20: [], 5: [10, 5], 1: [10, 5, 2, 1]}[size]
    assert [line.split("with ")[1].split()[0] for line in said] == list(map(str, steps))
    assert all("evaluation.batch_size" in line for line in said)


def test_an_image_that_does_not_fit_alone() -> None:
    view = AttackView(Hungry(nets.smooth(), 0))
    with pytest.raises(UserError, match="out of memory with one image"):
        run(view, EvaluationConfig(), torch.randn(4, 3, 32, 32), torch.zeros(4).long(), 4)


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    view = AttackView(nets.smooth())
    with pytest.raises(RuntimeError, match="channels"):
        run(view, EvaluationConfig(), torch.randn(4, 1, 32, 32), torch.zeros(4).long(), 4)


def test_the_space_of_pixels(photos: Index) -> None:
    """With one std for all channels pixels are a shifted and scaled input: dx scales, ||x|| is
    that of the pixels."""
    torch.manual_seed(0)
    net = nets.smooth(2)
    data = DataConfig(crop_size=32, resize_size=32, mean=[0.4, 0.5, 0.6], std=[0.25] * 3)
    alone = DistributedContext.single(CPU)
    samples_of = {}
    for space in ("input", "pixels"):
        config = RunConfig(data=data, evaluation=EvaluationConfig(space=space))
        samples_of[space], _ = Measurement(net, photos, config, alone, 1).run(np.arange(40))
    inputs, pixels = samples_of["input"], samples_of["pixels"]
    assert np.allclose(pixels.perturbation_norm, 0.25 * inputs.perturbation_norm, rtol=1e-3)
    assert (pixels.prediction == inputs.prediction).all()
    assert (pixels.image_norm <= np.sqrt(3 * 32 * 32)).all()
    assert not np.allclose(pixels.image_norm, 0.25 * inputs.image_norm, rtol=0.1)
    clipped = EvaluationConfig(space="pixels", clip=True)
    seen: list[Finished] = []
    config = RunConfig(data=data, evaluation=clipped)
    Measurement(net, photos, config, alone, 1).run(
        np.arange(40), lambda part, _: seen.append(part), frozenset(range(40))
    )
    examples = [example for part in seen for example in part.examples]
    assert sorted(e.row for e in examples) == list(range(40))
    for example in examples:
        assert (example.image + example.delta).min() >= -1e-6
        assert (example.image + example.delta).max() <= 1 + 1e-6


def test_images_that_do_not_decode_are_reported(tmp_path: Path, photos: Index) -> None:
    archive = photos.root / photos.files[0]
    (tmp_path / archive.name).write_bytes(archive.read_bytes())
    with (tmp_path / archive.name).open("r+b") as file:
        for row in (7, 39):
            file.seek(int(photos.offset[row]))
            file.write(bytes(200))
    broken = replace(photos, root=tmp_path)
    data = DataConfig(crop_size=32, resize_size=32, on_error="skip")
    reported: list[int] = []
    samples, skipped = Measurement(
        nets.smooth(2), broken, RunConfig(data=data), DistributedContext.single(CPU), 1
    ).run(np.arange(40), lambda _, rows: reported.extend(rows))
    assert reported == skipped == [7, 39]
    assert len(samples) == 38
