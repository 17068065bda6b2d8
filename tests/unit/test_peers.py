"""rho2 and FGS beside foolbox's: on a small net, and on real photos."""

from pathlib import Path

import foolbox
import numpy as np
import pytest
import torch

from pipeline.attacks import fgs
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import AttackConfig, EvaluationConfig, FgsConfig, ModelConfig, RunConfig
from pipeline.data import index
from pipeline.data.batches import evaluation_specs
from pipeline.data.loader import Loader
from pipeline.evaluation.measure import Measurement
from pipeline.models.attack_view import AttackView
from pipeline.models.build import build
from pipeline.runtime.distributed import DistributedContext
from tests.helpers import nets

EPS = [1e-4, 5e-4, 1e-3, 5e-3, 2e-2]


@pytest.fixture(scope="module")
def net(squeezenet_weights: Path) -> torch.nn.Module:
    weights = str(squeezenet_weights)
    model = build(ModelConfig(name="squeezenet1_1", weights=weights), 1000).requires_grad_(False)
    return model.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def photos(ilsvrc_val: Path) -> tuple[torch.Tensor, torch.Tensor]:
    photos_index = index.read(str(ilsvrc_val))
    data = RunConfig().data
    specs = evaluation_specs(photos_index, np.arange(len(photos_index)), data, 150)
    (batch,) = Loader(photos_index, specs, data, torch.device("cpu"), 150, 2)
    return batch.images.clone(), batch.labels.clone()


def test_a_small_net_beside_foolbox() -> None:
    """DeepFool and FGS on random images, by definition the same attacks."""
    torch.manual_seed(0)
    net = nets.smooth().eval()
    images = 2 * torch.randn(20, 3, 32, 32)
    model = foolbox.PyTorchModel(net, bounds=(-20, 20), device="cpu")
    labels = net(images).argmax(dim=1)
    attack = foolbox.attacks.L2DeepFoolAttack(
        steps=50, candidates=10, overshoot=0.02, loss="logits"
    )
    expected = per_sample_norm(attack.run(model, images, labels) - images)
    view = AttackView(net)
    delta = deepfool(view, images, AttackConfig(max_iterations=50)).delta
    assert per_sample_norm(delta).mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    forward = view.forward_with_grad(images)
    sign = fgs.fgs_direction(view, forward, labels).sign
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for eps in (0.01, 0.03, 0.1):
        perturbed = attack.run(model, images, labels, epsilon=eps)
        torch.testing.assert_close(images + eps * sign, perturbed)


@pytest.mark.slow
def test_rho2_is_near_foolbox(net: torch.nn.Module, photos: tuple) -> None:
    images = photos[0][::10]  # fifteen; foolbox takes a second an image
    model = foolbox.PyTorchModel(net, bounds=(-8, 8), device="cpu")
    attack = foolbox.attacks.L2DeepFoolAttack(
        steps=50, candidates=10, overshoot=0.02, loss="logits"
    )
    view = AttackView(net)
    expected = attack.run(model, images, view(images).argmax(dim=1)) - images
    actual = deepfool(view, images, AttackConfig(max_iterations=50)).delta
    rho2 = [
        (per_sample_norm(delta) / per_sample_norm(images)).mean().item()
        for delta in (actual, expected)
    ]
    assert rho2[0] == pytest.approx(rho2[1], rel=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["input", "pixels"])
def test_fgs_is_foolbox(net: torch.nn.Module, photos: tuple, ilsvrc_val: Path, space: str) -> None:
    images, labels = (part[::5] for part in photos)
    config = RunConfig(
        evaluation=EvaluationConfig(
            fgs=FgsConfig(eps=EPS),
            space=space,
            clip=space == "pixels",
            batch_size=50,
            attack=AttackConfig(max_iterations=1, num_candidates=2),
        )
    )
    photos_index = index.read(str(ilsvrc_val))
    alone = DistributedContext.single(torch.device("cpu"))
    samples, _ = Measurement(net, photos_index, config, alone, 2).run(np.arange(0, 150, 5))
    if space == "pixels":
        mean, std = config.data.mean, config.data.std
        columns = [torch.tensor(v).view(-1, 1, 1) for v in (mean, std)]
        images = (images * columns[1] + columns[0]).clamp(0, 1)
        preprocessing = {"mean": mean, "std": std, "axis": -3}
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    else:
        model = foolbox.PyTorchModel(net, bounds=(-8, 8), device="cpu")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for position, eps in enumerate(EPS):
        perturbed = attack.run(model, images, labels, epsilon=eps)
        expected = (model(perturbed).argmax(dim=1) == labels).sum().item()
        assert samples.fgs_correct[:, position].sum() == expected, eps


@pytest.mark.slow
def test_the_curve_of_smallest_eps_is_what_is_measured(net: torch.nn.Module, photos: tuple) -> None:
    images, labels = (part[::3] for part in photos)
    view = AttackView(net)
    graph = view.forward_with_grad(images)
    direction = fgs.fgs_direction(view, graph, labels)
    needed = fgs.smallest_eps(view, images, direction, labels, graph.logits.detach())
    measured = fgs.correct_after_fgs(view, images, direction.sign, labels, EPS).sum(dim=0)
    read = [(needed > eps).sum().item() for eps in EPS]
    assert read == measured.tolist()
