"""Parseval training (Cisse et al., ICML 2017): weight matrices near Parseval tight frames.

After each optimiser step W <- (1 + beta) W - beta W W^T W, on a random part of W's columns.
Convolutions are taken as matrices from unfolded patches to channels, a matrix for each group.
"""

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig
from pipeline.models.attack_view import AttackView
from pipeline.runtime.seeds import derive_seed

from .base import Method


class Parseval(Method):
    """Moves singular values towards one."""

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.objective.parseval
        layers = (m for m in view.net.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        self.layers = [layer for layer in layers if layer.weight.requires_grad]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Project; which columns is a function of the run's seed and the step."""
        for number, layer in enumerate(self.layers):
            seed = derive_seed(self.config.train.seed, step, number)
            groups = getattr(layer, "groups", 1)
            weight = layer.weight
            matrices = weight.reshape(groups, len(weight) // groups, -1)  # a copy, if need be
            width = matrices.shape[2]
            count = max(1, round(self.options.columns * width))
            chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count]
            chosen = chosen.to(weight.device)
            moved = retracted(matrices[:, :, chosen], self.options.beta)
            matrices = matrices.index_copy(2, chosen, moved)
            weight.copy_(matrices.view(weight.shape))


def retracted(matrices: Tensor, beta: float) -> Tensor:
    """(1 + beta) W - beta W W^T W of matrices (G, M, N): each singular value s becomes
    (1 + beta) s - beta s^3."""
    wide = matrices.shape[1] <= matrices.shape[2]
    inner = matrices @ matrices.mT if wide else matrices.mT @ matrices
    cubes = inner @ matrices if wide else matrices @ inner
    return (1 + beta) * matrices - beta * cubes
