"""Adversarial training II: cross-entropy of clean and of FGS examples (Goodfellow et al., 2015).

The loss is (1 - weight) CE(x) + weight CE(x + eps sign(grad_x CE)); the FGS examples are computed
in every step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attacks import fgs
from pipeline.config import FinetuneConfig
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.models.forward_in_parts import logits_in_parts, part_size
from pipeline.models.precision import upcast

from .base import Clean, Method, Term


class AdversarialTraining(Method):
    """Mixes FGS examples into the cross-entropy."""

    attacks = True

    def __init__(self, config: FinetuneConfig, view: AttackView) -> None:
        super().__init__(config, view)
        self.options = config.objective.adversarial
        if self.options.eps is None:
            raise UserError(
                "objective.adversarial.eps: adversarial_2 needs it, in units of the net's input; "
                "start with the eps_ref in the output of tools/report.py table"
            )

    def term(self, clean: Clean) -> Term:
        """The difference between the mixed loss and the clean cross-entropy."""
        images = upcast(clean.images.detach())
        examples = torch.add(images, self._signs(clean, images), alpha=self.options.eps)
        size = part_size(self.view.net, len(examples), clean.at_once)
        logits = logits_in_parts(self.view, examples, size)
        adversarial = F.cross_entropy(logits, clean.labels, reduction="none")
        return Term(self.options.weight * (adversarial - clean.cross_entropy).mean())

    def _signs(self, clean: Clean, images: Tensor) -> Tensor:
        """The direction of FGS for all images, (N, C, H, W)."""
        kind = self.options.direction
        if clean.graph is not None:
            return fgs.fgs_direction(self.view, clean.graph, clean.labels, kind).sign
        rows = torch.arange(len(images), device=images.device)
        signs = []
        for part in rows.split(clean.at_once or len(images)):
            graph = self.view.forward_with_grad(images[part], part)
            signs.append(fgs.fgs_direction(self.view, graph, clean.labels[part], kind).sign)
            del graph  # before the next is made
        return torch.cat(signs)
