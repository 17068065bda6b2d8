"""Options that only training has."""

from dataclasses import dataclass, field
from typing import Any, Literal

from .evaluation import AttackConfig
from .rule import require


@dataclass(kw_only=True)
class RegularizerConfig:
    """The Deep Defense term, equation (5) of the paper: lam times the sum of exp(-c ratio) over
    the correctly classified samples and of exp(d ratio) over the others, ratio = ||dx|| / ||x||."""

    lam: float = 5.0
    """lambda: weight of the term. 0 is plain fine-tuning."""
    c: float = 500.0
    """Steepness for correctly classified samples."""
    d: float = 5.0
    """Steepness for misclassified samples."""
    gradient: Literal["unrolled", "boundary"] = "unrolled"
    """Of the perturbation's norm: exact, through every step of the attack; or by the implicit
    function theorem at the boundary point alone (cheaper, approximate)."""
    attack: AttackConfig = field(
        default_factory=lambda: AttackConfig(linearize_at="tested", classes="first", visit="lazy")
    )
    """DeepFool as the regulariser uses it."""
    layers: list[str] = field(default_factory=list)
    """Patterns of names of parameters (7.*, layer4.*) that the term's gradient reaches, as in the
    paper's Figure 4; the cross-entropy's reaches all. Default: all."""
    max_images: int | Literal["auto"] | None = None
    """Largest number of images in the net at once, if a pass is larger: the attack, its gradient
    and (where batch norm is frozen) the cross-entropy take the pass in parts, so memory is that
    of the parts. auto: found from free memory. Default: all images of a pass."""

    def __post_init__(self) -> None:
        for name in ("lam", "c", "d"):
            value = getattr(self, name)
            require(value >= 0, f"regularizer.{name}", "0 or above", value)
        most = self.max_images
        enough = most is None or most == "auto" or most >= 1
        require(enough, "regularizer.max_images", "at least 1, or auto", most)


@dataclass(kw_only=True)
class AdversarialConfig:
    """Adversarial training II: (1 - weight) CE(x) + weight CE(x + eps sign(grad_x CE))."""

    eps: float | None = None
    """Of the FGS examples, in units of the net's input; adversarial_2 needs it."""
    weight: float = 0.5
    """Share of the FGS examples in the cross-entropy."""

    def __post_init__(self) -> None:
        require(self.eps is None or self.eps > 0, "objective.adversarial.eps", "above 0", self.eps)
        share = 0 <= self.weight <= 1
        require(share, "objective.adversarial.weight", "from 0 to 1", self.weight)


@dataclass(kw_only=True)
class ParsevalConfig:
    """Parseval training: after each step W <- (1 + beta) W - beta W W^T W."""

    beta: float = 1e-4
    """How far the weights are moved. The paper: 0.0001 on MNIST, 0.0003 on CIFAR-10."""
    columns: float = 0.3
    """Share of a matrix's columns, drawn anew in each step."""

    def __post_init__(self) -> None:
        require(self.beta >= 0, "objective.parseval.beta", "0 or above", self.beta)
        share = 0 < self.columns <= 1
        require(share, "objective.parseval.columns", "above 0, at most 1", self.columns)


@dataclass(kw_only=True)
class ObjectiveConfig:
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
class OptimConfig:
    """SGD."""

    lr: float = 5e-4
    """Learning rate while fine-tuning with the regulariser, before the schedule's factor."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on every trained parameter."""
    clip_norm: float | None = None
    """Clip the gradient's global L2 norm to this. Default: no clipping."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Factor on optim.lr; counted from the first step with the regulariser."""

    kind: Literal["constant", "step", "cosine", "linear"] = "step"
    """step: times gamma at each milestone; cosine and linear: down to 0 at the end."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of warmup and milestones."""
    warmup: float = 0.0
    """Linear rise from 0, in units."""
    milestones: list[float] = field(default_factory=list)
    """For kind step, in units."""
    gamma: float = 0.5
    """For kind step: the factor at each milestone."""


@dataclass(kw_only=True)
class TrainConfig:
    """Length, batch and seed of a run."""

    epochs: int = 1
    """Epochs with the regulariser."""
    clean_epochs: int = 0
    """Epochs before them without it, which make the reference net when there are no weights."""
    clean_lr: float = 0.01
    """Learning rate of the clean epochs (constant)."""
    batch_size: int = 256
    """Images an optimiser step, over all ranks and accumulation."""
    accumulation: int = 1
    """Forward-backward passes an optimiser step; each takes batch_size / ranks / this images."""
    seed: int = 0
    """Of the order, crops, flips, dropout and the random initialisation."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", "at least 1", value)
        for name in ("epochs", "clean_epochs", "seed"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name}", "0 or above", value)


@dataclass(kw_only=True)
class CheckpointConfig:
    """Files to resume from, in OUTPUT/checkpoints."""

    every_steps: int = 500
    """Steps between checkpoints; one is also written after each evaluation and at the end."""
    keep: int = 2
    """How many of the newest to keep."""
    best: Literal["accuracy", "rho2"] = "accuracy"
    """What best.pt is the best of, among the evaluations with the regulariser."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "checkpoint.every_steps", "at least 1", self.every_steps)
        require(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)


@dataclass(kw_only=True)
class LogConfig:
    """What is written while training runs."""

    every_steps: int = 10
    """Steps between rows of metrics.jsonl and points in TensorBoard."""
    panel_images: int = 6
    """Images in the panel of perturbations made at each evaluation; 0: no panel."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "log.every_steps", "at least 1", self.every_steps)
