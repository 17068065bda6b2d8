"""The training objective: one module that DistributedDataParallel (DDP) wraps.

In: a batch. Out: `Losses`. One forward of this module is one forward of DDP, followed by one
ordinary ``backward()`` of the loss. The gradients that the attack computes inside the forward are
not averaged over ranks.
"""

import inspect
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import methods
from pipeline.config import FinetuneConfig, ModelConfig, RegularizerConfig, RuntimeConfig
from pipeline.methods import Clean, Term
from pipeline.models.attack_view import AttackView, ForwardPass
from pipeline.models.build import batch_norms, draws
from pipeline.models.fixed_dropout import DROPOUT_LAYERS
from pipeline.models.forward_in_parts import logits_in_parts, part_size
from pipeline.models.precision import PRECISIONS, upcast
from pipeline.regularizer.loss_gradient import cross_entropy_pass
from pipeline.training import memory_budget
from pipeline.training.memory_budget import PassSize

_PER_SAMPLE = ("penalty", "ratio", "iterations", "flipped", "weight")  # fields of a method's term


class Losses(NamedTuple):
    """The losses of a batch of N images; only ``loss`` has a graph."""

    loss: Tensor  # scalar, to be differentiated
    cross_entropy: Tensor  # (N,)
    penalty: Tensor  # (N,) regulariser R of each sample; zeros without Deep Defense
    correct: Tensor  # (N,) bool
    ratio: Tensor  # (N,) ||dx|| / ||x||; zeros without Deep Defense
    iterations: Tensor  # (N,) of the attack; zeros without Deep Defense
    flipped: Tensor  # (N,) bool, whether the attack changed the class; one_step does not test it
    weight: Tensor  # (N,) how often the image counts in sums of the four values above


class Objective(nn.Module):
    """The mean cross-entropy plus the terms of the methods (`pipeline.methods`).

    Attributes:
        view: the net as an attack sees it.
        methods: the methods whose terms are added.
        attacks: whether one of them attacks the images.
        measures: whether one of them measures the size of perturbations.
        max_images: largest number of images in the net at once; None: all of a batch.
        uniform: (N,) float64 random numbers for the next batch, and
        typical_ratio: the mean ratio of the last evaluation, for methods that measure a random part
            of the images. None: they measure all.
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
        max_images = config.regularizer.max_images
        # For "auto", `limit_images` is called once the number is known.
        self.max_images = max_images if isinstance(max_images, int) else None
        self.uniform: Tensor | None = None
        self.typical_ratio: float | None = None
        self._can_share_forward: bool | None = None  # None: not tried yet
        self.train()

    def train(self, mode: bool = True) -> "Objective":
        """Set training mode; frozen batch norm keeps using its stored statistics."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in batch_norms(self.net):
                module.eval()
        return self

    def limit_images(self, max_images: int) -> None:
        """Limit the number of images in the net at once."""
        self.max_images = max_images

    def forward(self, images: Tensor, labels: Tensor, *, use_methods: bool) -> Losses:
        """The losses of a batch.

        Args:
            images: (N, C, H, W), in the network's input space.
            labels: (N,) int64.
            use_methods: add the methods' terms; false in the clean epochs.
        """
        self.view.draw_dropout_masks(len(images))
        mean, clean = self._clean_pass(images, labels, attack=use_methods and self.attacks)
        terms = [method.term(clean) for method in self.methods] if use_methods else []
        zeros = torch.zeros_like(clean.cross_entropy.detach())
        losses = Losses(
            loss=mean,
            cross_entropy=clean.cross_entropy.detach(),
            penalty=zeros,
            correct=clean.logits.detach().argmax(dim=1) == labels,
            ratio=zeros,
            iterations=zeros,
            flipped=zeros.bool(),
            weight=torch.ones_like(zeros),
        )
        for term in terms:
            if term is not None:
                losses = _add_term(losses, term)
        return losses

    def after_step(self, step: int) -> None:
        """Let the methods change the weights after an optimiser step of fine-tuning."""
        for method in self.methods:
            method.after_step(step)

    def max_images_that_fit(
        self, shape: tuple[int, ...], batch: int, device: torch.device, num_processes: int = 1
    ) -> memory_budget.MemoryBudget:
        """How many images fit into memory; see `memory_budget.max_images_that_fit`.

        Weights and buffers do not change.
        """
        parameters = self.view.parameters()

        def step(num_images: int) -> None:
            images = torch.randn(num_images, *shape, device=device)
            self.view.draw_dropout_masks(num_images)
            with torch.no_grad():
                labels = self.view(images).argmax(dim=1)
            loss = self(images, labels, use_methods=True).loss
            torch.autograd.grad(loss, parameters, allow_unused=True)

        if self._differs_in_training_mode():
            self._can_share_forward = False
        self.eval()  # in training mode, batch norm would update its statistics by random images
        try:
            return memory_budget.max_images_that_fit(
                step,
                parameters,
                PassSize(shape, batch, self._largest_useful(shape, batch, device)),
                device,
                num_processes,
            )
        finally:
            self.train()
            self._can_share_forward = None  # the answer of the trial depends on the mode

    def _largest_useful(self, shape: tuple[int, ...], batch: int, device: torch.device) -> int:
        """The number of images at once above which there are not fewer passes."""
        if device.type != "cuda":  # where fewer launches save no time
            return batch
        images = torch.randn(1, *shape, device=device)
        self.view.draw_dropout_masks(1)  # the net that is tried is the one that is attacked
        return batch * max((m.points_per_image(images) for m in self.methods), default=1)

    def _clean_pass(self, images: Tensor, labels: Tensor, attack: bool) -> tuple[Tensor, Clean]:
        """The mean cross-entropy, and what the methods' terms start from."""
        if attack and self._takes_loss_gradient(images):
            mean, cross_entropy, start = cross_entropy_pass(
                self.view, images, labels, self.max_images
            )
            logits, graph = start.logits, None
        else:
            logits, graph = self._clean_forward(images, attack)
            cross_entropy = F.cross_entropy(logits, labels, reduction="none")
            mean, start = cross_entropy.mean(), None
        return mean, Clean(
            images,
            labels,
            cross_entropy,
            logits,
            graph,
            self.max_images,
            uniform=self.uniform,
            typical_ratio=self.typical_ratio,
            loss_gradient=start,
        )

    def _takes_loss_gradient(self, images: Tensor) -> bool:
        """Whether one pass computes the cross-entropy and the direction of the only method."""
        takes = any(method.takes_loss_gradient for method in self.methods)
        return takes and self.why_passes_are_separate(images) is None

    def why_passes_are_separate(self, images: Tensor) -> str | None:
        """Why the cross-entropy's pass cannot give the direction of ``gradient: one_step``; None if
        it does, or if no method wants it.

        Args:
            images: (N, C, H, W) of any content, for trials of the net.
        """
        if not any(method.takes_loss_gradient for method in self.methods):
            return None
        if len(self.methods) > 1:
            return "several methods"
        if not self._shares_forward(images):
            return "the net in training mode differs: dropout, or batch norm that is not frozen"
        if not self.view.can_record_layers(images):
            return "parameters in other layers than convolutions, linear layers and batch norm"
        return None

    def _clean_forward(self, images: Tensor, attack: bool) -> tuple[Tensor, ForwardPass | None]:
        """The logits for the cross-entropy, and a forward pass from which an attack may start."""
        size = part_size(self.net, len(images), self.max_images) if attack else len(images)
        if size < len(images):
            return logits_in_parts(self.view, images, size), None
        if attack and self._shares_forward(images):
            points = upcast(images.detach()).requires_grad_()
            graph = ForwardPass(points, self.view.forward_current_mode(points))
            return graph.logits, graph
        return self.view.forward_current_mode(images), None

    def _shares_forward(self, images: Tensor) -> bool:
        """Whether an attack may start from the cross-entropy's forward pass.

        It may if the net computes the same logits in training mode as in the mode the attack uses;
        this is tried once, on two images.
        """
        if self._can_share_forward is None:
            self._can_share_forward = self._has_same_logits_in_both_modes(images[:2])
        return self._can_share_forward

    def _differs_in_training_mode(self) -> bool:
        """Whether a layer is known to compute something else than in the attack."""
        # With attack_dropout, the attack uses the same dropout masks as the cross-entropy.
        shared = DROPOUT_LAYERS if self.view.dropout else ()
        return any(module.training for module in batch_norms(self.net)) or any(
            draws(m) and m.training and not isinstance(m, shared) for m in self.net.modules()
        )

    def _has_same_logits_in_both_modes(self, images: Tensor) -> bool:
        if self._differs_in_training_mode():
            return False
        rows = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            training_logits = self.view.forward_current_mode(images, rows)
            return torch.equal(training_logits, self.view(images, rows))


def _add_term(losses: Losses, term: Term) -> Losses:
    """The losses with a method's term added; its values per sample replace those before."""
    values = {name: getattr(term, name) for name in _PER_SAMPLE}
    measured = {name: value for name, value in values.items() if value is not None}
    return losses._replace(loss=losses.loss + term.value, **measured)


def make_objective(
    net: nn.Module,
    regularizer: RegularizerConfig,
    model: ModelConfig | None = None,
    runtime: RuntimeConfig | None = None,
) -> Objective:
    """An objective from single sections of the options, with the defaults of all others."""
    config = FinetuneConfig(
        regularizer=regularizer,
        model=model or ModelConfig(),
        runtime=runtime or RuntimeConfig(),
    )
    return Objective(net, config)


def data_parallel(
    objective: Objective, device: torch.device, sync_buffers: bool
) -> DistributedDataParallel:
    """Wrap the objective in DDP.

    Args:
        objective: the module to wrap.
        device: the device of its parameters.
        sync_buffers: copy rank 0's buffers to all ranks before each forward.
    """
    # Gradients of channels_last weights are copied into DDP's buckets, which changes no number.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # torch has renamed this parameter.
    parameters = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {name: sync_buffers}
    return DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )
