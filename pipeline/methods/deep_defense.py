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
    """Rewards large DeepFool perturbations."""

    attacks = True
    measures = True

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.regularizer
        self.active = self.options.lam != 0
        self.layers = matching(view.net, self.options.layers) if self.options.layers else None

    def term(self, clean: Clean) -> Term:
        """The regulariser of a batch, as its mean over all images."""
        found = robustness(
            self.view, clean.images, clean.labels, self.options, clean.graph, clean.at_once
        )
        terms = penalty(found, self.options)
        value = self.options.lam * terms.mean()
        if self.layers is not None:
            value = only_through(value, self.layers, self.view.gradient_scale)
        return Term(value, terms.detach(), found.ratio.detach(), found.iterations, found.flipped)


def matching(net: nn.Module, patterns: list[str]) -> list[nn.Parameter]:
    """The trained parameters whose names match one of the patterns.

    Raises:
        UserError: a pattern matches none.
    """
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UserError(
                f"regularizer.layers: {pattern} matches none of the trained parameters: "
                f"{', '.join(named)}"
            )
    return [p for n, p in named.items() if any(fnmatchcase(n, each) for each in patterns)]


def only_through(value: Tensor, parameters: list[nn.Parameter], scale: float) -> Tensor:
    """The same scalar, whose gradient reaches these parameters alone (the paper's Figure 4).

    Args:
        value: with a graph, which stays.
        parameters: that are reached.
        scale: of the gradient on its way; see `AttackView.gradient_scale`.
    """
    gradients = torch.autograd.grad(value * scale, parameters, retain_graph=True, allow_unused=True)
    terms = (
        (p * (g / scale)).sum() for p, g in zip(parameters, gradients, strict=True) if g is not None
    )
    carrier = sum(terms, start=torch.zeros_like(value))
    return value.detach() + (carrier - carrier.detach())
