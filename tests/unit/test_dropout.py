"""Dropout inside the attack: masks drawn once an image, held through cross-entropy and attack."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.config import FinetuneConfig, ModelConfig, RegularizerConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.build import draws
from pipeline.models.fixed_dropout import DropoutMasks
from pipeline.training.objective import Objective, make_objective
from tests.helpers import nets
from tests.helpers.gradients import gradient, with_attack

HELD = ModelConfig(attack_dropout=True)


@pytest.fixture(params=[nets.dropout_mlp, nets.smooth_with_dropout])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(7, 1, 28, 28, dtype=torch.float64), torch.arange(7)


def whole_gradient(
    net: nn.Module, batch: tuple[Tensor, Tensor], config: RegularizerConfig
) -> tuple[Tensor, Objective]:
    objective = make_objective(net, config, HELD)
    objective.view.seed_dropout(5)
    net.zero_grad()
    objective(*batch, use_methods=True).loss.backward()
    return gradient(net), objective


def test_an_image_keeps_its_masks_in_any_batch(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images, _ = batch
    view = AttackView(net.train(), dropout=True)
    view.seed_dropout(3)
    view.draw_dropout_masks(len(images))
    rows = torch.tensor([5, 2, 2])
    torch.testing.assert_close(view(images[rows], rows), view(images)[rows])
    before = view(images)
    view.draw_dropout_masks(len(images))
    assert torch.equal(view(images), before)
    view.seed_dropout(4)
    view.draw_dropout_masks(len(images))
    assert not torch.allclose(view(images), before)
    assert all(module.training for module in net.modules())


def test_masks_are_those_of_dropout() -> None:
    torch.manual_seed(0)
    net = nets.dropout_mlp().double().train()
    images = torch.randn(50, 1, 28, 28, dtype=torch.float64)
    view = AttackView(net, dropout=True)
    view.draw_dropout_masks(50)
    logits = view(images)
    (kept,) = view._masks.drawn.values()
    assert kept.shape == (50, 40)
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(logits, net[4](net[:3](images) * kept / 0.5))
    masks = DropoutMasks(0, 4)
    factor = masks.factors(torch.arange(4), 0, torch.ones(4, 3, 5, 5), 0.25, whole_channels=True)
    assert factor.shape == (4, 3, 1, 1)
    assert factor.unique().tolist() == pytest.approx([0.0, 4 / 3])
    net.eval()
    torch.testing.assert_close(view(images), net(images))


@pytest.mark.parametrize("kind", ["unrolled", "boundary", "one_step"])
def test_parts_have_the_masks_of_the_whole(
    net: nn.Module, batch: tuple[Tensor, Tensor], kind: str
) -> None:
    config = with_attack(
        kind, linearize_at="overshot", candidate_search="pruned", target_class="fixed"
    )
    whole, _ = whole_gradient(net, batch, config)
    config.max_images = 3
    parts, _ = whole_gradient(net, batch, config)
    assert (whole - parts).norm() < 1e-9 * whole.norm()


def test_the_cross_entropy_has_the_same_masks_and_shares_its_forward(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    objective = Objective(net, FinetuneConfig(model=HELD))
    losses = objective(images, labels, use_methods=True)
    expected = F.cross_entropy(objective.view(images), labels, reduction="none")
    torch.testing.assert_close(losses.cross_entropy, expected.detach())
    assert objective._clean_forward(images, True)[1] is not None
    plain = Objective(net, FinetuneConfig(model=ModelConfig()))
    assert (
        plain._clean_forward(images, True)[1] is None
    )  # its cross-entropy drops, its attack does not
    assert AttackView(net)(images).allclose(net.eval()(images))


class FunctionalDropout(nn.Module):
    """1 + x after dropout in the module's own code, which evaluation mode switches off."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.0 + F.dropout(x, 0.5, self.training)


def test_layers_keep_their_masks_where_functional_dropout_is_off() -> None:
    """It is off in the attack's forward and on in the cross-entropy's."""
    net = nn.Sequential(FunctionalDropout(), nn.Dropout(0.5))
    view = AttackView(net.train(), dropout=True)
    view.draw_dropout_masks(4)
    images = torch.ones(4, 1, 8, 8)
    attacked, trained = view(images), view.forward_current_mode(images)
    assert torch.equal(attacked == 0, trained == 0)  # the last layer's mask
    assert trained.unique().tolist() == [0.0, 2.0, 6.0]
    assert attacked.unique().tolist() == [0.0, 4.0]


def test_nets_whose_rows_are_no_images_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(0, 1), nn.Dropout(), nn.Flatten(), nn.Linear(9, 3))
    view = AttackView(net.train(), dropout=True)
    view.draw_dropout_masks(2)
    with pytest.raises(UserError, match="one row for each image"):
        view(torch.ones(2, 4, 3, 3))


class DropPath(nn.Module):
    """Stochastic depth as timm has it, by the name of its attribute."""

    def __init__(self, drop_prob: float | None) -> None:
        super().__init__()
        self.drop_prob = drop_prob


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Dropout(0.0), False),
        (nn.Dropout2d(0.1), True),
        (StochasticDepth(0.0, "row"), False),
        (StochasticDepth(0.1, "row"), True),
        (DropPath(0.0), False),
        (DropPath(0.1), True),
        (DropPath(None), True),  # its own code decides
        (nn.ReLU(), False),
    ],
)
def test_which_layers_draw_random_numbers(layer: nn.Module, expected: bool) -> None:
    assert draws(layer) is expected


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_of_probability_0_needs_no_passes_of_its_own(p: float) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3))
    objective = make_objective(net.train(), RegularizerConfig(gradient="one_step"))
    reason = objective.why_passes_are_separate(torch.randn(2, 1, 4, 4))
    assert (reason is None) is (p == 0)
