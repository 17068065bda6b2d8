"""The training objective: one module that DistributedDataParallel wraps.

In: a batch. Out: `Losses`. One forward of this module is one forward of DDP, and one ordinary
``backward()`` of its loss follows: the inner gradients of the attack stay local to the rank.
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pipeline import methods
from pipeline.config import FinetuneConfig, ModelConfig, RegularizerConfig, RuntimeConfig
from pipeline.methods import Clean
from pipeline.models.attack_view import AttackView, ForwardPass, upcast
from pipeline.models.build import batch_norms, draws
from pipeline.models.fixed_dropout import DROPOUT_LAYERS
from pipeline.training import memory_budget

_PER_SAMPLE = ("penalty", "ratio", "iterations", "flipped")  # of a term
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """Of a batch of N images; per sample but for the loss. Only ``loss`` has a graph."""

    loss: Tensor  # scalar, to be differentiated
    cross_entropy: Tensor  # (N,)
    penalty: Tensor  # (N,) R of each sample; zeros without Deep Defense
    correct: Tensor  # (N,) bool
    ratio: Tensor  # (N,) ||dx|| / ||x||; zeros without Deep Defense
    iterations: Tensor  # (N,)
    flipped: Tensor  # (N,) bool


class Objective(nn.Module):
    """mean CE, and what the methods add to it (`pipeline.methods`).

    Attributes:
        view: the net as an attack sees it.
        methods: what takes part besides the cross-entropy.
        at_once: largest number of images in the net at once; None: all.
    """

    def __init__(self, net: nn.Module, config: FinetuneConfig) -> None:
        super().__init__()
        self.net = net
        self.freeze_batch_norm = config.model.freeze_batch_norm
        precision = PRECISIONS[config.runtime.precision]
        self.view = AttackView(net, precision, config.model.attack_dropout)
        self.methods = methods.make(config, self.view)
        self.attacks = any(method.attacks for method in self.methods)
        self.measures = any(method.measures for method in self.methods)
        limit = config.regularizer.max_images
        self.at_once = limit if isinstance(limit, int) else None  # images; auto is not found yet
        self._shares: bool | None = None
        self.train()

    def train(self, mode: bool = True) -> "Objective":
        """Training mode; frozen batch norm stays on its stored statistics."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in batch_norms(self.net):
                module.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, tuning: bool) -> Losses:
        """The losses of a batch.

        Args:
            images: (N, C, H, W), in the network's input space.
            labels: (N,) int64.
            tuning: whether the methods take part; not in the clean epochs.
        """
        self.view.draw_dropout_masks(len(images))
        logits, graph = self._clean_forward(images, tuning and self.attacks)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        clean = Clean(images, labels, cross_entropy, logits, graph, self.at_once)
        terms = [method.term(clean) for method in self.methods] if tuning else []
        loss = cross_entropy.mean()
        seen = torch.zeros_like(cross_entropy.detach())
        losses = Losses(
            loss=loss,
            cross_entropy=cross_entropy.detach(),
            penalty=seen,
            correct=logits.detach().argmax(dim=1) == labels,
            ratio=seen,
            iterations=seen,
            flipped=seen.bool(),
        )
        for term in filter(None, terms):
            named = {name: getattr(term, name) for name in _PER_SAMPLE}
            losses = losses._replace(
                loss=losses.loss + term.value,
                **{name: value for name, value in named.items() if value is not None},
            )
        return losses

    def after_step(self, step: int) -> None:
        """What the methods do to the weights after an optimiser step of fine-tuning."""
        for method in self.methods:
            method.after_step(step)

    def max_images_that_fit(
        self, shape: tuple[int, ...], batch: int, device: torch.device, sharers: int = 1
    ) -> memory_budget.MemoryBudget:
        """How many images fit at once; see `memory_budget.fit`. Weights and buffers stay."""
        parameters = self.view.parameters()

        def step(number: int) -> None:
            images = torch.randn(number, *shape, device=device)
            self.view.draw_dropout_masks(number)
            with torch.no_grad():
                labels = self.view(images).argmax(dim=1)
            loss = self(images, labels, True).loss
            torch.autograd.grad(loss, parameters, allow_unused=True)

        self.eval()  # batch norm would take the generated images into its statistics
        try:
            return memory_budget.max_images_that_fit(
                step, parameters, shape, batch, device, sharers
            )
        finally:
            self.train()
            self._shares = None  # another answer in training mode

    def _clean_forward(self, images: Tensor, attacked: bool) -> tuple[Tensor, ForwardPass | None]:
        """Logits for the cross-entropy, and their graph if the attack may start from it."""
        if attacked and self._takes_parts(images):
            rows = torch.arange(len(images), device=images.device)
            parts = zip(images.split(self.at_once), rows.split(self.at_once), strict=True)
            made_again = [
                checkpoint(self.view.forward_current_mode, *part, use_reentrant=False)
                for part in parts
            ]
            return torch.cat(made_again), None
        if attacked and self._shares_forward(images):
            points = upcast(images.detach()).requires_grad_()
            graph = ForwardPass(points, self.view.forward_current_mode(points))
            return graph.logits, graph
        return self.view.forward_current_mode(images), None

    def _takes_parts(self, images: Tensor) -> bool:
        """Whether the cross-entropy's graph is made part by part, each when it is differentiated.
        Batch norm that trains needs the whole batch."""
        trains = any(module.training for module in batch_norms(self.net))
        return self.at_once is not None and len(images) > self.at_once and not trains

    def _shares_forward(self, images: Tensor) -> bool:
        """Whether the attack may start from the cross-entropy's forward: whether the net computes
        the same in training mode as the attack sees, tried once, on two images."""
        if self._shares is None:
            held = DROPOUT_LAYERS if self.view.dropout else ()  # its masks are the attack's
            if any(draws(m) and m.training and not isinstance(m, held) for m in self.net.modules()):
                self._shares = False
            else:
                two = torch.arange(2, device=images.device)[: len(images)]
                with torch.no_grad():
                    as_trained = self.view.forward_current_mode(images[:2], two)
                    self._shares = torch.equal(as_trained, self.view(images[:2], two))
        return self._shares


def make_objective(
    net: nn.Module,
    regularizer: RegularizerConfig,
    model: ModelConfig | None = None,
    runtime: RuntimeConfig | None = None,
) -> Objective:
    """The objective of the paper, for whoever has no run."""
    given = {"model": model or ModelConfig(), "runtime": runtime or RuntimeConfig()}
    return Objective(net, FinetuneConfig(regularizer=regularizer, **given))


def data_parallel(
    objective: Objective, device: torch.device, sync_buffers: bool
) -> DistributedDataParallel:
    """The objective under DDP, by whichever name this torch gives ``sync_buffers``."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: sync_buffers}
    return DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )
