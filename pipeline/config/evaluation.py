"""Options of the attacks and of what is measured."""

from dataclasses import dataclass, field
from typing import Literal

from .rule import require

# Where the paper's Table 1 reads accuracies.
EPS_REF_FRACTIONS = (0.2, 0.5, 1.0)


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
    """p: the norm that the perturbation is smallest in; above 1, or inf. The paper: 2."""
    direction: Literal["normal", "loss"] = "normal"
    """Each step's direction: the normal of the nearest linearised boundary (DeepFool); or the
    gradient of the cross-entropy, as far as the boundary to the runner-up: steps of FGS with norm
    inf, normalised gradient steps with norm 2 (one step: max_iterations 1)."""
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
        require(self.safety >= 1, "safety", "at least 1", self.safety)
        require(self.num_candidates >= 2, "num_candidates", "at least 2", self.num_candidates)
        require(self.max_iterations >= 1, "max_iterations", "at least 1", self.max_iterations)
        require(self.overshoot >= 0, "overshoot", "0 or above", self.overshoot)
        self.norm = float(self.norm)
        require(self.norm > 1, "norm", "above 1, or inf", self.norm)

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
        require(all(eps >= 0 for eps in self.eps), "evaluation.fgs.eps", rule, self.eps)
        given = self.reference
        above = not isinstance(given, float) or given > 0
        require(above, "evaluation.fgs.reference", "above 0, or a folder", given)

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
        require(self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        require(self.every_epochs >= 1, "evaluation.every_epochs", "at least 1", self.every_epochs)
        enough = self.num_images is None or self.num_images >= 1
        require(enough, "evaluation.num_images", "at least 1", self.num_images)
        clips = self.clip and self.space != "pixels"
        require(not clips, "evaluation.clip", "false where evaluation.space is input", self.clip)
