"""The training objective: one module that DistributedDataParallel wraps.

In: a batch. Out: `Losses`. One forward of this module is one forward of DDP, and one ordinary
``backward()`` of its loss follows: the inner gradients of the attack stay local to the rank.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from pipeline import memory
from pipeline.config import ModelConfig, RegularizerConfig, RuntimeConfig
from pipeline.models import batch_norms
from pipeline.regularizer import penalty, robustness
from pipeline.view import AttackView, Graph, autocast, logits_of, upcast

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """Of a batch of N images; per sample but for the loss. Only ``loss`` has a graph."""

    loss: Tensor  # scalar, to be differentiated
    cross_entropy: Tensor  # (N,)
    penalty: Tensor  # (N,) R of each sample; zeros without the regulariser
    correct: Tensor  # (N,) bool
    ratio: Tensor  # (N,) ||dx|| / ||x||; zeros without the regulariser
    iterations: Tensor  # (N,)
    flipped: Tensor  # (N,) bool


class DeepDefense(nn.Module):
    """mean CE + lambda / N * (sum_T exp(-c ratio) + sum_F exp(d ratio)), equation (5)."""

    def __init__(
        self,
        net: nn.Module,
        regularizer: RegularizerConfig,
        model: ModelConfig | None = None,
        runtime: RuntimeConfig | None = None,
    ) -> None:
        super().__init__()
        model, runtime = model or ModelConfig(), runtime or RuntimeConfig()
        self.net = net
        self.config = regularizer
        self.freeze_batch_norm = model.freeze_batch_norm
        self.precision = PRECISIONS[runtime.precision]
        self.view = AttackView(net, self.precision, model.attack_dropout)
        limit = regularizer.max_images
        self.at_once = limit if isinstance(limit, int) else None  # images; auto is not found yet
        self._shares: bool | None = None
        self.train()

    def train(self, mode: bool = True) -> "DeepDefense":
        """Training mode; frozen batch norm stays on its stored statistics."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in batch_norms(self.net):
                module.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, lam: float) -> Losses:
        """The losses of a batch.

        Args:
            images: (N, C, H, W), in the network's input space.
            labels: (N,) int64.
            lam: weight of the regulariser; 0 leaves the attack out.
        """
        attacked = lam != 0
        logits, graph = self._clean(images, attacked)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        if not attacked:
            correct = logits.detach().argmax(dim=1) == labels
            zeros = torch.zeros_like(cross_entropy.detach())
            loss = cross_entropy.mean()
            return Losses(loss, cross_entropy.detach(), zeros, correct, zeros, zeros, zeros.bool())
        found = robustness(self.view, images, labels, self.config, graph, self.at_once)
        terms = penalty(found, self.config)
        loss = cross_entropy.mean() + lam * terms.mean()
        return Losses(
            loss,
            cross_entropy.detach(),
            terms.detach(),
            found.correct,
            found.ratio.detach(),
            found.iterations,
            found.flipped,
        )

    def fit(
        self, shape: tuple[int, ...], batch: int, device: torch.device, sharers: int = 1
    ) -> memory.Budget:
        """How many images fit at once; see `memory.fit`. Weights and buffers stay as they are."""
        parameters = self.view.parameters()

        def step(number: int) -> None:
            images = torch.randn(number, *shape, device=device)
            with torch.no_grad():
                labels = self.view(images).argmax(dim=1)
            loss = self(images, labels, self.config.lam).loss
            torch.autograd.grad(loss, parameters, allow_unused=True)

        self.eval()  # batch norm would take the generated images into its statistics
        try:
            return memory.fit(step, parameters, shape, batch, device, sharers)
        finally:
            self.train()
            self._shares = None  # another answer in training mode

    def _clean(self, images: Tensor, attacked: bool) -> tuple[Tensor, Graph | None]:
        """Logits for the cross-entropy, and their graph if the attack may start from it."""
        if attacked and self._takes_parts(images):
            parts = images.split(self.at_once)
            made_again = [checkpoint(self._logits, part, use_reentrant=False) for part in parts]
            return torch.cat(made_again), None
        if attacked and self._shares_forward(images):
            points = upcast(images.detach()).requires_grad_()
            graph = Graph(points, self._logits(points))
            return graph.logits, graph
        return self._logits(images), None

    def _logits(self, images: Tensor) -> Tensor:
        """The net as it trains."""
        with autocast(images, self.precision):
            return upcast(logits_of(self.net(self.view.laid_out(images))))

    def _takes_parts(self, images: Tensor) -> bool:
        """Whether the cross-entropy's graph is made part by part, each when it is differentiated.
        Batch norm that trains needs the whole batch."""
        trains = any(module.training for module in batch_norms(self.net))
        return self.at_once is not None and len(images) > self.at_once and not trains

    def _shares_forward(self, images: Tensor) -> bool:
        """Whether the attack may start from the cross-entropy's forward: whether the net computes
        the same in training mode as the attack sees, tried once, on two images."""
        if self._shares is None:
            random = (nn.modules.dropout._DropoutNd, StochasticDepth)
            if any(isinstance(m, random) and m.training for m in self.net.modules()):
                self._shares = False
            else:
                with torch.no_grad():
                    self._shares = torch.equal(self._logits(images[:2]), self.view(images[:2]))
        return self._shares
