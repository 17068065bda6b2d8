"""What a method is."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.config import FinetuneConfig
from pipeline.models.attack_view import AttackView, ForwardPass


class Clean(NamedTuple):
    """A batch of N images after its clean forward."""

    images: Tensor  # (N, C, H, W), in the network's input space
    labels: Tensor  # (N,) int64
    cross_entropy: Tensor  # (N,), with a graph
    logits: Tensor  # (N, K), with a graph
    graph: ForwardPass | None  # of the images too, where the net trains as the attack sees it
    at_once: int | None  # largest number of images in the net at a time


@dataclass(frozen=True)
class Term:
    """What a method adds to the loss."""

    value: Tensor  # scalar, with a graph
    # Of each image, for logs and for naming images whose loss is not finite; all (N,).
    penalty: Tensor | None = None
    ratio: Tensor | None = None  # ||dx|| / ||x||
    iterations: Tensor | None = None
    flipped: Tensor | None = None  # bool


class Method:
    """Base of all methods; does nothing.

    Attributes:
        active: whether it does anything with these options.
        attacks: whether `term` takes a graph of the images, which then is made with the clean
            forward where the net allows it.
        measures: whether its terms say how large perturbations are.
    """

    active = True
    attacks = False
    measures = False

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        """Take the options that are this method's.

        Args:
            config: of the run; ``config.objective.options`` is for methods of one's own.
            view: the net as an attack sees it; ``view.net`` is the net as it trains.
        """
        self.config, self.view = config, view

    def term(self, clean: Clean) -> Term | None:
        """What is added to the mean cross-entropy of a batch, on this rank's images.

        The net's gradients are averaged over ranks afterwards; use no collectives here.
        """
        return None

    def after_step(self, step: int) -> None:
        """Change the weights after the optimiser's step, the same on every rank.

        Args:
            step: optimiser steps done, the one just done included.
        """
