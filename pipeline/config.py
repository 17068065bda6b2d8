"""Options of both entry points: typed dataclasses, a YAML file, then command-line overrides.

Each section belongs to the room that reads it. `FinetuneConfig` extends `EvaluateConfig`, so the
YAML of an experiment serves both entry points: `pipeline/evaluate.py` passes over the sections
that only training has.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Where the paper's Table 1 reads accuracies.
EPS_REF_FRACTIONS = (0.2, 0.5, 1.0)
DEFAULT_CONFIG = CONFIGS / "demo.yaml"


def _require(condition: bool, option: str, rule: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{option} must be {rule}, got {value}")


@dataclass(kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet18"
    """A torchvision classifier (resnet18, alexnet, squeezenet1_1, ...), mlp or lenet (the paper's
    MNIST nets), or your own as package.module:callable (given num_classes=N if it takes it)."""
    weights: str | None = None
    """A .pth or .safetensors file, a checkpoint or weights.pth of a run, or the name of
    torchvision's weights (DEFAULT, IMAGENET1K_V1), which downloads. Default: a random start."""
    num_classes: int | None = None
    """Number of classes of the net. Default: that of the index."""
    freeze_batch_norm: bool = True
    """Batch norm runs on its stored statistics and its parameters do not train, as in the paper."""
    attack_dropout: bool = False
    """Leave dropout on inside the attack (one mask for each attack iteration). The paper: off."""


@dataclass(kw_only=True)
class DataConfig:
    """Where the images are and how they become the network's input."""

    train: str = "demo"
    """Index (.parquet, from tools/index.py) of the training images, or demo: embedded digits."""
    val: str = "demo"
    """Index (.parquet) of the images to evaluate on, or demo: embedded held-out digits."""
    root: str | None = None
    """Folder that holds the archives or images named in the indices, if they have been moved.
    Default: the folder recorded in each index."""
    crop: int = 224
    """Side of the square input, in pixels."""
    resize: int = 256
    """Evaluation: the shorter side is resized to this many pixels before the centre crop."""
    channels: Literal[1, 3] = 3
    """Channels of the input: 3 (RGB) or 1 (grey)."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Subtracted from each channel; in units of pixel values in [0, 1]."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Divides each channel after the mean; in units of pixel values in [0, 1]."""
    random_crop: bool = True
    """Train on random resized crops; otherwise on the centre crop of evaluation."""
    area: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Random crops: least and largest share of the image's area."""
    aspect: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Random crops: least and largest width / height."""
    flip: bool = True
    """Train on random horizontal flips, with probability 1/2."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image that does not decode: stop and name it, or count it and go on without it."""
    threads: int | None = None
    """Decoding threads a rank. Default: its share of the machine's cores, and one more."""
    prefetch: int = 3
    """Batches decoded ahead of the step."""
    half_input: bool = False
    """On a GPU hand the net half-precision channels_last input (half the memory traffic)."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            rule = f"{self.channels} numbers, one a channel"
            _require(len(values) == self.channels, f"data.{name}", rule, values)
        _require(min(self.std) > 0, "data.std", "above 0", self.std)
        _require(self.crop >= 1, "data.crop", "at least 1 pixel", self.crop)
        _require(self.resize >= self.crop, "data.resize", "at least data.crop", self.resize)
        _require(self.prefetch >= 1, "data.prefetch", "at least 1", self.prefetch)
        ordered = len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1
        _require(ordered, "data.area", "two numbers, 0 < least <= largest <= 1", self.area)
        ordered = len(self.aspect) == 2 and 0 < self.aspect[0] <= self.aspect[1]
        _require(ordered, "data.aspect", "two numbers, 0 < least <= largest", self.aspect)


@dataclass(kw_only=True)
class AttackConfig:
    """DeepFool."""

    num_candidates: int = 10
    """q: the classes of highest logit at the clean image that are considered, its own included."""
    max_iterations: int = 5
    """Iterations after which a sample that has not flipped is given up (the paper's 5)."""
    overshoot: float = 0.02
    """The perturbation is multiplied by 1 + this at the end, and in the test for a flip."""
    norm: float | Literal["inf"] = 2.0
    """p: the norm that the perturbation is smallest in; above 1, or inf. Training: 2."""
    linearize_at: Literal["reached", "tested"] = "reached"
    """Where an iteration starts from: the point that the steps reached, as the Deep Defense
    authors do; or 1 + overshoot times as far, where the class was tested, as DeepFool's authors
    do, which saves a forward an iteration."""
    classes: Literal["every", "first"] = "every"
    """Choose the class to move to in every iteration, as the paper does, or keep the first one."""
    visit: Literal["all", "lazy"] = "all"
    """Compute every candidate's gradient, or visit candidates in the order of their expected
    distance and stop when none could be nearer unless it is safety times nearer than expected."""
    safety: float = 1.15
    """For visit lazy: how much nearer than expected a candidate may be (a factor, 1 or above)."""

    def __post_init__(self) -> None:
        _require(self.safety >= 1, "safety", "at least 1", self.safety)
        _require(self.num_candidates >= 2, "num_candidates", "at least 2", self.num_candidates)
        _require(self.max_iterations >= 1, "max_iterations", "at least 1", self.max_iterations)
        _require(self.overshoot >= 0, "overshoot", "0 or above", self.overshoot)
        self.norm = float(self.norm)
        _require(self.norm > 1, "norm", "above 1, or inf", self.norm)

    @property
    def reach(self) -> float:
        """Factor on what the earlier steps reached, where an iteration starts."""
        return 1.0 if self.linearize_at == "reached" else 1.0 + self.overshoot


@dataclass(kw_only=True)
class FgsConfig:
    """The fast gradient sign attack; eps is in units of evaluation.space."""

    eps: list[float] = field(default_factory=list)
    """Measure the accuracy after FGS with each of these."""
    reference: float | str | None = None
    """A given eps_ref, at whose 0.2, 0.5 and 1.0 the accuracy is measured: a number, or the folder
    of an evaluation that searched for it."""
    search: bool = False
    """Find the smallest eps that each image needs, and so this model's eps_ref: the smallest eps
    that leaves at most half of the images classified correctly."""

    def __post_init__(self) -> None:
        rule = "numbers of 0 or above"
        _require(all(eps >= 0 for eps in self.eps), "evaluation.fgs.eps", rule, self.eps)
        given = self.reference
        above = not isinstance(given, float) or given > 0
        _require(above, "evaluation.fgs.reference", "above 0, or a folder", given)

    @property
    def measured(self) -> list[float]:
        """Every eps at which the accuracy is measured, ascending."""
        reference = self.reference
        fractions = [] if reference is None else [f * reference for f in EPS_REF_FRACTIONS]
        return sorted({*self.eps, *fractions})

    @property
    def asked(self) -> bool:
        """Whether FGS is wanted at all."""
        return self.search or bool(self.measured)


@dataclass(kw_only=True)
class EvaluationConfig:
    """Accuracy and rho2, in training and in evaluate.py."""

    attack: AttackConfig = field(default_factory=AttackConfig)
    """DeepFool as rho2 uses it."""
    fgs: FgsConfig = field(default_factory=FgsConfig)
    """FGS, beside it."""
    space: Literal["input", "pixels"] = "input"
    """Where perturbations and norms are taken: the network's input, after the normalisation, as
    in the paper; or pixels in [0, 1], with the normalisation inside the model."""
    clip: bool = False
    """Space pixels: cut perturbed images to [0, 1], so that they are images."""
    batch_size: int = 100
    """Images a rank in one batch."""
    num_images: int | None = None
    """Evaluate on this many images, evenly spaced in the index. Default: all."""
    every_epochs: int = 1
    """Fine-tuning: evaluate after every so many epochs (and always before and after)."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        _require(self.every_epochs >= 1, "evaluation.every_epochs", "at least 1", self.every_epochs)
        enough = self.num_images is None or self.num_images >= 1
        _require(enough, "evaluation.num_images", "at least 1", self.num_images)
        clips = self.clip and self.space != "pixels"
        _require(not clips, "evaluation.clip", "false where evaluation.space is input", self.clip)


@dataclass(kw_only=True)
class RuntimeConfig:
    """Devices and precision."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run. auto: a GPU a rank if there are GPUs, else the CPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward and backward in training (torch.amp; fp16 with loss scaling).
    Norms and logit differences are fp32 always, and evaluation runs in fp32."""
    tf32: bool = False
    """Allow TF32 in fp32 matrix products and convolutions on the GPU, in evaluation too."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep the net and its input in channels_last memory format. auto: on the CPU, and on a GPU
    with half precision, where it is faster."""
    timeout: int = 600
    """Seconds after which ranks that wait for one another give up."""


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
    max_images: int | Literal["auto"] | None = None
    """Largest number of images in the net at once, if a pass is larger: the attack, its gradient
    and (where batch norm is frozen) the cross-entropy take the pass in parts, so memory is that
    of the parts. auto: found from free memory. Default: all images of a pass."""

    def __post_init__(self) -> None:
        for name in ("lam", "c", "d"):
            value = getattr(self, name)
            _require(value >= 0, f"regularizer.{name}", "0 or above", value)
        most = self.max_images
        _require(self.attack.norm == 2, "regularizer.attack.norm", "2", self.attack.norm)
        enough = most is None or most == "auto" or most >= 1
        _require(enough, "regularizer.max_images", "at least 1, or auto", most)


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
            _require(value >= 1, f"train.{name}", "at least 1", value)
        for name in ("epochs", "clean_epochs", "seed"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name}", "0 or above", value)


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
        _require(self.every_steps >= 1, "checkpoint.every_steps", "at least 1", self.every_steps)
        _require(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)


@dataclass(kw_only=True)
class LogConfig:
    """What is written while training runs."""

    every_steps: int = 10
    """Steps between rows of metrics.jsonl and points in TensorBoard."""
    panel_images: int = 6
    """Images in the panel of perturbations made at each evaluation; 0: no panel."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, "log.every_steps", "at least 1", self.every_steps)


@dataclass(kw_only=True)
class RunConfig:
    """Options of both entry points."""

    output: str | None = None
    """Folder of the run. Default: runs/NAME, NAME that of the YAML file (evaluation:
    runs/NAME-evaluation)."""
    resume: str = "auto"
    """auto: go on from what OUTPUT holds, if anything; never: refuse a folder that holds a run;
    PATH: go on from this checkpoint (fine-tuning) or results folder (evaluation)."""
    dry_run: bool = False
    """Check everything, say what would run, and stop."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


class Shard(NamedTuple):
    """One of several jobs that share the images."""

    number: int  # from 0
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(kw_only=True)
class EvaluateConfig(RunConfig):
    """Options of pipeline/evaluate.py."""

    shard: str = "0/1"
    """i/n, i from 0 to n - 1: evaluate only the i-th of n parts of the images. The n jobs, which
    need not know of one another, are given the same OUTPUT."""
    num_examples: int = 8
    """Images, evenly spaced in the index, whose perturbations are kept for the contact sheet."""

    def __post_init__(self) -> None:
        number, _, of = self.shard.partition("/")
        numbers = number.isdecimal() and of.isdecimal()
        valid = numbers and int(number) < int(of)
        _require(valid, "shard", "i/n with i from 0 to n - 1", self.shard)
        _require(self.num_examples >= 0, "num_examples", "0 or above", self.num_examples)

    @property
    def part(self) -> Shard:
        """The shard, as numbers."""
        number, of = self.shard.split("/")
        return Shard(int(number), int(of))


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """Options of pipeline/finetune.py."""

    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        half = self.data.half_input and self.runtime.precision == "fp32"
        _require(not half, "data.half_input", "false with runtime.precision fp32", True)
