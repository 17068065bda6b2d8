"""A small net of a user, found in the working folder."""

from torch import nn


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, num_classes)
    )
