"""Other attacks inside the regulariser: norms besides 2, FGS and normalised gradient steps."""

import math

import torch

from pipeline.attacks import fgs
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.norms import per_sample_norm
from pipeline.config import AttackConfig, EvaluationConfig, RuntimeConfig
from pipeline.evaluation.protocol import evaluation_protocol
from pipeline.models.attack_view import AttackView
from tests.helpers import nets
from tests.helpers.gradients import cosine, gradient_by, setting, with_attack


def test_boundary_is_exact_on_linear_nets_in_any_norm() -> None:
    torch.manual_seed(0)
    net = nets.linear(torch.randn(2, 30, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
    images = torch.randn(12, 1, 5, 6, dtype=torch.float64)
    labels = net(images).argmax(dim=1)
    for p in (1.3, 2.0, 3.0):
        for direction in ("boundary", "loss_gradient"):  # two classes: the same direction
            attack = {"norm": p, "step_direction": direction}
            exact = gradient_by(net, images, labels, with_attack("unrolled", **attack))
            other = gradient_by(net, images, labels, with_attack("boundary", **attack))
            assert cosine(exact, other) > 1 - 1e-9, (p, direction)


def test_one_step_of_fgs() -> None:
    net, images, _ = setting("lenet", count=12)
    view = AttackView(net)
    config = AttackConfig(norm=math.inf, step_direction="loss_gradient", max_iterations=1)
    perturbation = deepfool(view, images, config)
    graph = view.forward_with_grad(images)
    sign = fgs.fgs_direction(view, graph, graph.logits.argmax(dim=1)).sign
    largest = per_sample_norm(perturbation.delta, math.inf)
    assert (largest > 0).all()
    torch.testing.assert_close(perturbation.delta, largest[:, None, None, None] * sign)
    many = deepfool(
        view, images, AttackConfig(norm=2.0, step_direction="loss_gradient", max_iterations=50)
    )
    assert many.flipped.all()
    least = deepfool(view, images, AttackConfig(max_iterations=50))
    ratio = per_sample_norm(many.delta) / per_sample_norm(least.delta)
    assert (ratio > 0.99).all()  # DeepFool goes the shorter way
    assert ratio.max() < 2


def test_a_net_that_is_sure_is_attacked_all_the_same() -> None:
    torch.manual_seed(0)
    net = nets.linear(300 * torch.randn(10, 30), torch.zeros(10))  # its cross-entropy is 0 in fp32
    images = torch.randn(8, 1, 5, 6)
    graph = AttackView(net).forward_with_grad(images)
    labels = graph.logits.argmax(dim=1)
    assert torch.nn.functional.cross_entropy(graph.logits, labels, reduction="none").min() == 0
    perturbation = deepfool(
        AttackView(net), images, AttackConfig(step_direction="loss_gradient", max_iterations=20)
    )
    assert perturbation.flipped.all()


def test_results_say_which_attack_it_was() -> None:
    plain = evaluation_protocol(EvaluationConfig(), RuntimeConfig(), 10)
    assert "direction" not in plain.to_dict()
    attack = AttackConfig(step_direction="loss_gradient")
    other = evaluation_protocol(EvaluationConfig(attack=attack), RuntimeConfig(), 10)
    assert other.direction == "gradient of the cross-entropy"
