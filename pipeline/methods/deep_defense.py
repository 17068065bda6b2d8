"""Deep Defense: lambda / N * (sum_T exp(-c ratio) + sum_F exp(d ratio)), equation (5)."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pipeline.attacks.linearized_step import PointsToLinearize
from pipeline.config import FinetuneConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.precision import PRECISIONS
from pipeline.regularizer.loss_gradient import LossGradient
from pipeline.regularizer.penalty import Robustness, penalty, robustness, worst_of_each_class
from pipeline.regularizer.sampling import (
    Selection,
    probability_in_f,
    select,
    select_all,
    select_correct,
)
from pipeline.regularizer.unrolled import is_piecewise_linear_attack

from .base import Clean, Method, Term


class DeepDefense(Method):
    """Adds a regulariser that decreases with the size of DeepFool's perturbations."""

    attacks = True
    measures = True

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.regularizer
        self.active = self.options.lam != 0
        # Not a subclass, whose term may need the graphs of `Clean`.
        one_step = self.options.gradient == "one_step"
        self.takes_loss_gradient = one_step and type(self) is DeepDefense
        # The parameters that the regulariser's gradient reaches; None: all.
        self.parameters = None
        if self.options.layers:
            self.parameters = matching(view.net, self.options.layers)

    def points_per_image(self, images: Tensor) -> int:
        """All iterations for ``gradient: unrolled`` of a piecewise linear net."""
        attack = self.options.attack
        in_one_pass = self.options.gradient == "unrolled" and is_piecewise_linear_attack(
            self.attack_view(), images, attack
        )
        return attack.max_iterations if in_one_pass else 1

    def term(self, clean: Clean) -> Term:
        """The mean of the regulariser over the images of a batch.

        Of the misclassified images a random part is measured (`pipeline.regularizer.sampling`).
        """
        rows, weight = self._selection(clean)
        if len(rows) == 0:
            return _empty_term(weight)
        num_images = len(clean.images)
        view, images, labels = self.attack_view(), clean.images, clean.labels
        if len(rows) < num_images:
            view, images, labels = view.of_rows(rows), images[rows], labels[rows]
        start = _start(clean, rows, view.precision == self.view.precision)
        measured = robustness(view, images, labels, self.options, start, clean.at_once)
        penalties = self._penalties(measured, labels, num_images)
        value = self.options.lam * ((penalties * weight[rows]).sum() / num_images)
        if self.parameters is not None:
            value = restrict_gradient_to(value, self.parameters)
        return Term(
            value,
            penalty=_of_batch(penalties, rows, num_images),
            ratio=_of_batch(measured.ratio, rows, num_images),
            iterations=_of_batch(measured.iterations, rows, num_images),
            flipped=_of_batch(measured.flipped, rows, num_images),
            weight=weight,
        )

    def _penalties(self, measured: Robustness, labels: Tensor, num_images: int) -> Tensor:
        """R of each measured image (A,); 0 for those that the options leave out.

        Args:
            measured: the perturbations of A images.
            labels: (A,) their true classes.
            num_images: number of images of the batch.
        """
        penalties = penalty(measured, self.options)
        if not self.options.include_misclassified:
            # The attack may see other classes than the clean forward pass in training mode.
            penalties = penalties.where(measured.correct, 0.0)
        if self.options.smallest_share < 1.0:
            max_worst = max(1, int(num_images * self.options.smallest_share))
            worst = worst_of_each_class(measured, labels, max_worst)
            penalties = penalties.where(worst, 0.0)
        return penalties

    def attack_view(self) -> AttackView:
        """The net in the precision of the regulariser."""
        precision = self.options.precision
        return self.view if precision is None else self.view.in_precision(PRECISIONS[precision])

    def _selection(self, clean: Clean) -> Selection:
        """The images that are measured."""
        if not self.options.include_misclassified:
            return select_correct(is_correct(clean))
        if clean.uniform is None or clean.typical_ratio is None:
            return select_all(clean.images)
        probability = probability_in_f(self.options, clean.typical_ratio)
        if probability == 1.0:
            return select_all(clean.images)
        return select(is_correct(clean), clean.uniform, probability)


def _empty_term(weight: Tensor) -> Term:
    """The term of a batch (N,) of which no image is measured."""
    zeros = torch.zeros_like(weight)
    return Term(
        zeros.sum(),
        penalty=zeros,
        ratio=zeros,
        iterations=zeros,
        flipped=zeros.bool(),
        weight=weight,
    )


def _of_batch(values: Tensor, rows: Tensor, num_images: int) -> Tensor:
    """Values (A,) of the measured images, without a graph, among those of the whole batch (N,);
    zeros elsewhere.

    Args:
        values: (A,).
        rows: (A,) positions of the measured images in the batch.
        num_images: N; if A equals it, all images are measured, in their order.
    """
    values = values.detach()
    if len(rows) == num_images:
        return values
    return values.new_zeros(num_images).index_copy(0, rows, values)


def _start(
    clean: Clean, rows: Tensor, same_precision: bool
) -> PointsToLinearize | LossGradient | None:
    """Where the attack on some images (A,) of the batch starts, of what the clean pass has left."""
    # The classes and the step are then those of the run's precision, whatever the term's is.
    if clean.loss_gradient is not None:
        return clean.loss_gradient.of_rows(rows)
    # A new forward pass of a few images costs less than gradients of all.
    if clean.graph is not None and same_precision and 2 * len(rows) > len(clean.images):
        return PointsToLinearize(clean.graph, rows)
    return None


def is_correct(clean: Clean) -> Tensor:
    """Which images (N,) bool the clean forward pass classifies correctly."""
    return clean.logits.detach().argmax(dim=1) == clean.labels


def matching(net: nn.Module, patterns: list[str]) -> list[nn.Parameter]:
    """The trained parameters whose names match one of the patterns.

    Raises:
        UserError: a pattern matches none.
    """
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise UserError(
                f"regularizer.layers: {pattern} matches none of the trained parameters: "
                f"{', '.join(trained)}"
            )
    return [
        parameter
        for name, parameter in trained.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def restrict_gradient_to(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The same scalar with a gradient in these parameters only (for the paper's Figure 4).

    Args:
        value: with a graph, which is kept.
        parameters: that get a gradient.
    """
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    terms = ((p * g).sum() for p, g in zip(parameters, gradients, strict=True) if g is not None)
    # A linear function of the parameters that has this gradient; minus itself it adds zero.
    linear = sum(terms, start=torch.zeros_like(value))
    return value.detach() + (linear - linear.detach())
