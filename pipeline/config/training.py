"""Options that only training has."""

from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import Range, Section, number, require
from .evaluation import AttackConfig


@dataclass(kw_only=True)
class RegularizerConfig(Section):
    """The Deep Defense term, equation (5) of the paper: lam times the sum of exp(-c ratio) over
    the correctly classified samples and of exp(d ratio) over the others, ratio = ||dx|| / ||x||."""

    lam: float = number(5.0, Range(minimum=0))
    """lambda: weight of the term. 0 is plain fine-tuning."""
    c: float = number(500.0, Range(minimum=0))
    """Steepness for correctly classified samples."""
    d: float = number(5.0, Range(minimum=0))
    """Steepness for misclassified samples."""
    gradient: Literal["unrolled", "boundary"] = "unrolled"
    """Of the perturbation's norm: exact, through every step of the attack; or by the implicit
    function theorem at the boundary point alone (cheaper, approximate)."""
    attack: AttackConfig = field(
        default_factory=lambda: AttackConfig(
            linearize_at="overshot", target_class="fixed", candidate_search="pruned"
        )
    )
    """DeepFool as the regulariser uses it."""
    layers: list[str] = field(default_factory=list)
    """Patterns of names of parameters (7.*, layer4.*) that the term's gradient reaches, as in the
    paper's Figure 4; the cross-entropy's reaches all. Default: all."""
    max_images: int | Literal["auto"] | None = number(None, Range(minimum=1, unit="images"))
    """Largest number of images in the net at once, if a pass is larger: the attack, its gradient
    and (where batch norm is frozen) the cross-entropy take the pass in parts, so memory is that
    of the parts. auto: found from free memory. Default: all images of a pass."""


@dataclass(kw_only=True)
class AdversarialConfig(Section):
    """Adversarial training II: (1 - weight) CE(x) + weight CE(x + eps sign(grad_x CE))."""

    eps: float | None = number(None, Range(above=0))
    """Of the FGS examples, in units of the net's input; adversarial_2 needs it."""
    weight: float = number(0.5, Range(minimum=0, maximum=1))
    """Share of the FGS examples in the cross-entropy."""


@dataclass(kw_only=True)
class ParsevalConfig(Section):
    """Parseval training: after each step W <- (1 + beta) W - beta W W^T W."""

    beta: float = number(1e-4, Range(minimum=0))
    """How far the weights are moved. The paper: 0.0001 on MNIST, 0.0003 on CIFAR-10."""
    columns: float = number(0.3, Range(above=0, maximum=1))
    """Share of a matrix's columns, drawn anew in each step."""


@dataclass(kw_only=True)
class ObjectiveConfig(Section):
    """What is trained for, beside the cross-entropy of the clean images."""

    method: str = "deep_defense"
    """clean, deep_defense (see regularizer), adversarial_2, parseval, several joined by +, or your
    own as package.module:Class (docs/method.md). Adversarial training I is clean with more data."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Of adversarial_2."""
    parseval: ParsevalConfig = field(default_factory=ParsevalConfig)
    """Of parseval."""
    options: dict[str, Any] = field(default_factory=dict)
    """For a method of your own."""


@dataclass(kw_only=True)
class OptimConfig(Section):
    """SGD."""

    lr: float = number(5e-4, Range(minimum=0))
    """Learning rate while fine-tuning with the regulariser, before the schedule's factor."""
    momentum: float = number(0.9, Range(minimum=0, below=1))
    """Momentum."""
    weight_decay: float = number(5e-4, Range(minimum=0))
    """L2 penalty on every trained parameter."""
    max_grad_norm: float | None = number(None, Range(above=0))
    """Largest L2 norm of the gradient of all parameters together; a longer one is scaled down to
    it. Default: no clipping."""


@dataclass(kw_only=True)
class ScheduleConfig(Section):
    """Factor on optim.lr; counted from the first step with the regulariser."""

    kind: Literal["constant", "step", "cosine", "linear"] = "step"
    """step: times gamma at each milestone; cosine and linear: down to 0 at the end."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of warmup and milestones."""
    warmup: float = number(0.0, Range(minimum=0, unit="epochs or steps"))
    """Linear rise from 0, in units."""
    milestones: list[float] = number([], Range(minimum=0, unit="epochs or steps"))
    """For kind step, in units."""
    gamma: float = number(0.5, Range(above=0, maximum=1))
    """For kind step: the factor at each milestone."""

    def check(self) -> None:
        """Milestones come one after the other."""
        ascend = self.milestones == sorted(set(self.milestones))
        require(ascend, "milestones", "in ascending order, each once", self.milestones)


@dataclass(kw_only=True)
class TrainConfig(Section):
    """Length, batch and seed of a run."""

    epochs: int = number(1, Range(minimum=0, unit="epochs"))
    """Epochs with the regulariser."""
    pretrain_epochs: int = number(0, Range(minimum=0, unit="epochs"))
    """Epochs of plain training before them, with the cross-entropy alone; they make the reference
    net when there are no weights."""
    pretrain_lr: float = number(0.01, Range(minimum=0))
    """Learning rate of these epochs (constant)."""
    batch_size: int = number(256, Range(minimum=1, unit="images"))
    """Images an optimiser step, over all ranks and accumulation."""
    gradient_accumulation_steps: int = number(1, Range(minimum=1, unit="passes"))
    """Forward and backward passes for each optimiser step; a pass takes batch_size / ranks /
    gradient_accumulation_steps images on each rank."""
    seed: int = number(0, Range(minimum=0, maximum=2**63 - 1))
    """Of the order, crops, flips, dropout and the random initialisation."""


@dataclass(kw_only=True)
class CheckpointConfig(Section):
    """Files to resume from, in OUTPUT/checkpoints."""

    every_steps: int = number(500, Range(minimum=1, unit="steps"))
    """Steps between checkpoints; one is also written after each evaluation and at the end."""
    keep_last: int = number(2, Range(minimum=1, unit="files"))
    """Number of numbered checkpoints kept, the newest; best.pt is kept besides."""
    best: Literal["accuracy", "rho2"] = "accuracy"
    """What best.pt is the best of, among the evaluations with the regulariser."""


@dataclass(kw_only=True)
class LogConfig(Section):
    """What is written while training runs."""

    every_steps: int = number(10, Range(minimum=1, unit="steps"))
    """Steps between rows of metrics.jsonl and points in TensorBoard."""
    panel_images: int = number(6, Range(minimum=0, unit="images"))
    """Images in the panel of perturbations made at each evaluation; 0: no panel."""
