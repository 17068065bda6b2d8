"""Options that only training has."""

from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import Range, Section, number, require
from .evaluation import AttackConfig, FgsDirectionKind


@dataclass(kw_only=True)
class RegularizerConfig(Section):
    """The Deep Defense term, equation (5) of the paper: lam times the sum of exp(-c ratio) over
    the correctly classified samples and of exp(d ratio) over the others, ratio = ||dx|| / ||x||."""

    lam: float = number(5.0, Range(minimum=0))
    """lambda: weight of the term. 0 is plain fine-tuning."""
    c: float = number(500.0, Range(minimum=0))
    """Factor in the exponent for correctly classified samples."""
    d: float = number(5.0, Range(minimum=0))
    """Factor in the exponent for misclassified samples."""
    form: Literal["exp", "linear", "inverse", "hinge"] = "exp"
    """R of a correctly classified sample, and of a misclassified one. exp: exp(-c ratio) and
    exp(d ratio); linear: -c ratio and d ratio; inverse: 1 / (1 + c ratio) and 1 / (1 - d ratio), at
    most 50; hinge: max(0, c - ratio) and c + ratio, with c the ratio from which on nothing is
    gained, and d unused."""
    include_misclassified: bool = True
    """Whether misclassified samples have a term."""
    smallest_share: float = number(1.0, Range(above=0, maximum=1))
    """Below 1, only the worst samples of a pass on a rank have a term: of each class the one with
    the smallest ratio (misclassified: the largest), if it is in this share of the batch. The term
    then depends on the number of ranks. 1: all samples."""
    gradient: Literal["unrolled", "boundary", "one_step"] = "unrolled"
    """What is measured and differentiated. unrolled: the perturbation of attack, exactly, through
    every step; boundary: the same by the implicit function theorem at the boundary point (cheaper,
    approximate); one_step: the distance to the boundary that is linearised after one step along the
    gradient of the cross-entropy (cheapest; of attack only norm is used)."""
    through_earlier_steps: bool = True
    """For unrolled: whether a step's gradient goes through the point that the steps before it have
    reached. false: each step is differentiated at a fixed point."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the attack and of the term's gradient; with gradient one_step that of the last
    linearisation, where the first pass is the cross-entropy's. Rounding in bf16 hides the sign of
    logit differences near the boundary; fp16 has eight times finer steps. Default:
    runtime.precision."""
    attack: AttackConfig = field(
        default_factory=lambda: AttackConfig(
            linearize_at="overshot",
            target_class="fixed",
            candidate_search="pruned",
            max_projections=1,
        )
    )
    """The attack, for the regulariser: deepfool, or superdeepfool, which trains on the true
    distance (gradient boundary)."""
    min_probability: float = number(0.1, Range(above=0, maximum=1))
    """Misclassified samples whose gradient is expected to be smaller than that of correctly
    classified ones are measured with a probability, of at least this, and then count 1 /
    probability times. Above one half all are measured. The term's mean and its expected gradient
    stay the same, and on ImageNet most of its cost is saved. 1: measure all samples."""
    layers: list[str] = field(default_factory=list)
    """Patterns of parameter names (7.*, layer4.*). The term's gradient is restricted to these
    parameters, as in the paper's Figure 4; the cross-entropy's gradient is not. Default: all
    parameters."""
    max_images: int | Literal["auto"] | None = number(None, Range(minimum=1, unit="images"))
    """Largest number of images that are in the net at the same time. A larger pass is split: the
    attack, its gradient and, if batch norm is frozen, the cross-entropy. This limits memory. If it
    is larger than a pass, gradient unrolled takes the points of several iterations in one pass,
    which saves kernel launches on GPUs. auto: computed from free memory. Default: all images of
    a pass."""

    def check(self) -> None:
        """Check that the attack has a gradient of this kind, and c the size for the form."""
        method = self.attack.method
        names = "deepfool or superdeepfool in regularizer"
        has_gradient = method in ("deepfool", "superdeepfool") or self.gradient == "one_step"
        require(has_gradient, "attack.method", names, method)
        fits = method == "deepfool" or self.gradient != "unrolled"
        rule = "boundary where regularizer.attack.method is superdeepfool"
        require(fits, "gradient", rule, self.gradient)
        far_enough = self.form != "hinge" or self.c <= 1
        rule = "at most 1 where regularizer.form is hinge: the ratio from which nothing is gained"
        require(far_enough, "c", rule, self.c)


@dataclass(kw_only=True)
class AdversarialConfig(Section):
    """Adversarial training II: (1 - weight) CE(x) + weight CE(x + eps sign(grad_x CE))."""

    eps: float | None = number(None, Range(above=0))
    """eps of the FGS examples, in units of the net's input; must be set for adversarial_2."""
    weight: float = number(0.5, Range(minimum=0, maximum=1))
    """Share of the FGS examples in the cross-entropy."""
    direction: FgsDirectionKind = "exact"
    """The direction of FGS, as evaluation.fgs.direction."""


@dataclass(kw_only=True)
class ParsevalConfig(Section):
    """Parseval training: after each step W <- (1 + beta) W - beta W W^T W."""

    beta: float = number(1e-4, Range(minimum=0))
    """Size of the update. The paper: 0.0001 on MNIST, 0.0003 on CIFAR-10."""
    columns: float = number(0.3, Range(above=0, maximum=1))
    """Share of a matrix's columns that a step updates; they are drawn randomly in each step."""


@dataclass(kw_only=True)
class ObjectiveConfig(Section):
    """What is added to the cross-entropy of the clean images."""

    method: str = "deep_defense"
    """Training method: clean, deep_defense (see regularizer), adversarial_2, parseval, several of
    them joined by +, or your own as package.module:Class (docs/method.md). Adversarial training I
    is clean with more data."""
    targets: Literal["labels", "reference"] = "labels"
    """Which class an image counts as, in the cross-entropy and in the methods. labels: its label in
    data.train. reference: the class that the net with model.weights predicts for the image as it
    is cropped. Labels and classes of data.train are then not used, so that pictures without labels
    can be trained on (docs/method.md)."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Options of adversarial_2."""
    parseval: ParsevalConfig = field(default_factory=ParsevalConfig)
    """Options of parseval."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a method of your own."""

    def check(self) -> None:
        """Check that each method is named once: its term would be added twice."""
        names = self.method.split("+")
        require(len(names) == len(set(names)), "method", "several methods, each once", self.method)


@dataclass(kw_only=True)
class OptimConfig(Section):
    """SGD."""

    lr: float = number(5e-4, Range(minimum=0))
    """Learning rate during fine-tuning, which the schedule's factor multiplies."""
    momentum: float = number(0.9, Range(minimum=0, below=1))
    """Momentum."""
    weight_decay: float = number(5e-4, Range(minimum=0))
    """L2 penalty on every trained parameter."""
    max_grad_norm: float | None = number(None, Range(above=0))
    """Largest L2 norm of the gradient of all parameters; a larger gradient is scaled down to this
    norm. Default: no clipping."""


@dataclass(kw_only=True)
class ScheduleConfig(Section):
    """Factor that multiplies optim.lr. It starts at the first step with the regulariser."""

    kind: Literal["constant", "step", "cosine", "linear"] = "step"
    """constant: always 1; step: multiplied by gamma at each milestone; cosine and linear: decreases
    to 0 at the end."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of warmup and milestones."""
    warmup: float = number(0.0, Range(minimum=0, unit="epochs or steps"))
    """Length of the linear increase from 0 at the start, in schedule.unit."""
    milestones: list[float] = number([], Range(minimum=0, unit="epochs or steps"))
    """For kind step: when the factor is multiplied by gamma, in schedule.unit."""
    gamma: float = number(0.5, Range(above=0, maximum=1))
    """For kind step: the number by which the factor is multiplied at each milestone."""

    def check(self) -> None:
        """Check that milestones ascend."""
        ascend = self.milestones == sorted(set(self.milestones))
        require(ascend, "milestones", "in ascending order, each once", self.milestones)


@dataclass(kw_only=True)
class TrainConfig(Section):
    """Length, batch and seed of a run."""

    epochs: int = number(1, Range(minimum=0, unit="epochs"))
    """Epochs with the regulariser."""
    pretrain_epochs: int = number(0, Range(minimum=0, unit="epochs"))
    """Epochs with the cross-entropy only, before those with the regulariser. Without weights they
    train the reference net."""
    pretrain_lr: float = number(0.01, Range(minimum=0))
    """Constant learning rate of the pretrain_epochs."""
    batch_size: int = number(256, Range(minimum=1, unit="images"))
    """Images in an optimiser step, over all ranks and accumulated passes."""
    gradient_accumulation_steps: int = number(1, Range(minimum=1, unit="passes"))
    """Forward and backward passes for each optimiser step; a pass takes batch_size / ranks /
    gradient_accumulation_steps images on each rank."""
    seed: int = number(0, Range(minimum=0, maximum=2**63 - 1))
    """Seed of the order, crops, flips, dropout and the random initialisation."""


@dataclass(kw_only=True)
class CheckpointConfig(Section):
    """Files to resume from, in OUTPUT/checkpoints."""

    every_steps: int = number(500, Range(minimum=1, unit="steps"))
    """Steps between checkpoints; one is also written after each evaluation and at the end."""
    keep_last: int = number(2, Range(minimum=1, unit="files"))
    """Number of newest checkpoints that are kept, in addition to best.pt."""
    best: Literal["accuracy", "rho2"] = "accuracy"
    """best.pt is the checkpoint with the largest value of this, among the evaluations during
    fine-tuning. rho2 stands for the mean ratio in the norm of evaluation.attack."""


@dataclass(kw_only=True)
class LogConfig(Section):
    """Logs of a training run."""

    every_steps: int = number(10, Range(minimum=1, unit="steps"))
    """Steps between rows of metrics.jsonl and points in TensorBoard."""
    panel_images: int = number(6, Range(minimum=0, unit="images"))
    """Number of images in the panel of perturbations of each evaluation; 0: no panel."""
