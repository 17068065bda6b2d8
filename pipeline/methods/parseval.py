"""Parseval training (Cisse et al., ICML 2017): weight matrices near Parseval tight frames.

After each optimiser step W <- (1 + beta) W - beta W W^T W, on a random part of W's columns. The
kernel of a convolution is a matrix from unfolded patches to channels, one for each group.
"""

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.runtime.seeds import derive_seed

from .base import Method


class Parseval(Method):
    """Moves the singular values of weight matrices towards one."""

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.objective.parseval
        self.layers = _layers_that_train(view.net)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Change the weights; the columns are a function of the run's seed and the step."""
        for number, layer in enumerate(self.layers):
            seed = derive_seed(self.config.train.seed, step, number)
            groups = getattr(layer, "groups", 1)
            weight = layer.weight
            matrices = weight.reshape(groups, len(weight) // groups, -1)  # may be a copy
            width = matrices.shape[2]
            num_columns = max(1, round(self.options.columns * width))
            order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
            columns = order[:num_columns].to(weight.device, non_blocking=True)
            changed = retracted(matrices[:, :, columns], self.options.beta)
            matrices = matrices.index_copy(2, columns, changed)
            weight.copy_(matrices.view(weight.shape))


def _layers_that_train(net: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers whose weights train; of layers that share a weight, the first."""
    layers: dict[int, nn.Linear | nn.Conv2d] = {}
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not layer.weight.requires_grad:
            continue
        if not isinstance(layer.weight, nn.Parameter):
            raise UserError(
                f"objective.method parseval: the weight of {name} is computed from other "
                "parameters (weight_norm, spectral_norm), so that it cannot be changed; use the "
                "net without this or another method"
            )
        layers.setdefault(id(layer.weight), layer)
    return [*layers.values()]


def retracted(matrices: Tensor, beta: float) -> Tensor:
    """(1 + beta) W - beta W W^T W of each W in ``matrices``, (G, M, N).

    Each singular value s becomes (1 + beta) s - beta s^3.
    """
    if matrices.shape[1] <= matrices.shape[2]:  # the smaller of the two products is computed
        cubes = (matrices @ matrices.mT) @ matrices
    else:
        cubes = matrices @ (matrices.mT @ matrices)
    return (1 + beta) * matrices - beta * cubes
