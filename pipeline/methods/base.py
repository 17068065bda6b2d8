"""The interface of training methods."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.config import FinetuneConfig
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.regularizer.loss_gradient import LossGradient


class Clean(NamedTuple):
    """A batch of N images after its clean forward pass."""

    images: Tensor  # (N, C, H, W), in the network's input space
    labels: Tensor  # (N,) int64
    cross_entropy: Tensor  # (N,), with a graph if there is no ``loss_gradient``
    logits: Tensor  # (N, K), the same
    # A forward pass that can be differentiated by the images, so that an attack may start from it.
    # None if the attack needs its own: no method attacks, the batch is split to save memory, or the
    # net computes other logits in training mode than in the mode that attacks use.
    graph: ForwardPass | None
    at_once: int | None  # largest number of images in the net at the same time; None: all
    # For methods that measure only some images: (N,) float64 random numbers in [0, 1), and the mean
    # ratio ||dx|| / ||x|| of the last evaluation. None: they measure all images.
    uniform: Tensor | None = None
    typical_ratio: float | None = None
    # The gradient of the margin loss, if a method takes it and the pass of the cross-entropy has
    # given it. Then `cross_entropy` and `logits` have no graph.
    loss_gradient: LossGradient | None = None


@dataclass(frozen=True)
class Term:
    """The term that a method adds to the loss, and values for the log."""

    value: Tensor  # scalar, with a graph
    # Values of each image, (N,), for logs and for the error about losses that are not finite.
    penalty: Tensor | None = None
    ratio: Tensor | None = None  # ||dx|| / ||x||
    iterations: Tensor | None = None
    flipped: Tensor | None = None  # bool
    # How often each image counts in the sums of these values; 0: not measured. None: once.
    weight: Tensor | None = None


class Method:
    """Base class of all methods; does nothing.

    Attributes:
        active: whether it has an effect with the options of this run.
        attacks: whether `term` can use ``clean.graph``, which is computed only if a method does.
        measures: whether its terms contain the size of perturbations (``ratio``).
        takes_loss_gradient: whether `term` uses ``clean.loss_gradient`` if it is there, and then
            needs no graph of `Clean`. It is computed if the method is the only one, and attacks.
    """

    active = True
    attacks = False
    measures = False
    takes_loss_gradient = False

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        """Read the options of this method.

        Args:
            config: the options of the run; ``config.objective.options`` are for users' methods.
            view: the net as an attack sees it; ``view.net`` is the net that is trained.
        """
        self.config, self.view = config, view

    def term(self, clean: Clean) -> Term | None:
        """The term that is added to the mean cross-entropy of a batch of this rank.

        The gradients of the weights are averaged over ranks afterwards. Collectives must not be
        used here.
        """

    def points_per_image(self, images: Tensor) -> int:  # noqa: ARG002 - for subclasses
        """The most iterations of the attack whose points the gradient takes in one pass.

        Args:
            images: (N, C, H, W) of any content, for trials of the net.
        """
        return 1

    def after_step(self, step: int) -> None:
        """Change the weights after the optimiser's step, the same on every rank.

        Args:
            step: optimiser steps done, including this one.
        """
