"""The space in which images are perturbed and norms are measured.

In: a net and the options of data and evaluation. Out: the attack view and the data options of that
space. For `pixels`, the normalisation moves from the loader into the net; nothing else changes.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.config import DataConfig, EvaluationConfig
from pipeline.data.mean_image import mean_of
from pipeline.models.attack_view import AttackView
from pipeline.runtime.reproducibility import images_at_once, min_batch_size


class Normalised(nn.Module):
    """A net that takes pixels in [0, 1] and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, data: DataConfig) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.from_numpy(mean_of(data)))
        self.register_buffer("std", torch.tensor(data.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of pixels (N, C, H, W)."""
        return self.net((images - self.mean) / self.std)


def data_options(data: DataConfig, evaluation: EvaluationConfig) -> DataConfig:
    """The loader's options for an evaluation; its input always has single precision."""
    if evaluation.space == "input":
        return replace(data, half_input=False)
    return replace(data, half_input=False, mean=[0.0] * data.channels, std=[1.0] * data.channels)


def attack_view_of(
    net: nn.Module, data: DataConfig, evaluation: EvaluationConfig, device: torch.device
) -> AttackView:
    """The view of the net in the space of the evaluation. Its batches are large enough for
    reproducible results."""
    size = images_at_once(evaluation.batch_size, device)
    smallest = min_batch_size(size, device)
    if evaluation.space == "input":
        return AttackView(net, min_batch_size=smallest).with_fused_attention()
    bounds = (0.0, 1.0) if evaluation.clip else None
    normalised = Normalised(net, data).to(device)
    view = AttackView(normalised, bounds=bounds, min_batch_size=smallest)
    return view.with_fused_attention()
