"""Deep Defense: lambda / N * (sum_T exp(-c ratio) + sum_F exp(d ratio)), equation (5)."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.regularizer.penalty import penalty, robustness

from .base import Clean, Method, Term


class DeepDefense(Method):
    """Adds a regulariser that decreases with the size of DeepFool's perturbations."""

    attacks = True
    measures = True

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.regularizer
        self.active = self.options.lam != 0
        # The parameters that the regulariser's gradient reaches; None: all.
        self.parameters = None
        if self.options.layers:
            self.parameters = matching(view.net, self.options.layers)

    def term(self, clean: Clean) -> Term:
        """The mean of the regulariser over the images of a batch."""
        perturbed = robustness(
            self.view, clean.images, clean.labels, self.options, clean.graph, clean.at_once
        )
        terms = penalty(perturbed, self.options)
        value = self.options.lam * terms.mean()
        if self.parameters is not None:
            value = only_through(value, self.parameters, self.view.gradient_scale)
        return Term(
            value,
            penalty=terms.detach(),
            ratio=perturbed.ratio.detach(),
            iterations=perturbed.iterations,
            flipped=perturbed.flipped,
        )


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


def only_through(value: Tensor, parameters: list[nn.Parameter], scale: float) -> Tensor:
    """The same scalar with a gradient in these parameters only (for the paper's Figure 4).

    Args:
        value: with a graph, which is kept.
        parameters: that get a gradient.
        scale: factor on the gradient while it is computed, see `AttackView.gradient_scale`.
    """
    gradients = torch.autograd.grad(value * scale, parameters, retain_graph=True, allow_unused=True)
    terms = (
        (p * (g / scale)).sum() for p, g in zip(parameters, gradients, strict=True) if g is not None
    )
    # A linear function of the parameters that has this gradient; minus itself it adds zero.
    linear = sum(terms, start=torch.zeros_like(value))
    return value.detach() + (linear - linear.detach())
