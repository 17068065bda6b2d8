"""Options of the attacks and of what is measured."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import OptionError, Range, Section, number, require
from .text import did_you_mean

# The fractions of eps_ref at which the paper's Table 1 states accuracies.
EPS_REF_FRACTIONS = (0.2, 0.5, 1.0)
LOW_COSINE = 0.9  # of dx and the boundary's normal: below it, dx is far from a smallest one
# The attacks of attack.method best, in the order in which they run.
BEST = ("deepfool", "superdeepfool", "ddn", "fmn")


@dataclass(kw_only=True)
class AttackConfig(Section):
    """The attack that measures the smallest perturbation of each image."""

    method: str = "deepfool"
    """deepfool (the paper's); superdeepfool: DeepFool, then projections onto the boundary's normal
    and a line search; ddn; fmn; several joined by +: the smallest for each image; best:
    deepfool+superdeepfool+ddn+fmn. In evaluations also one minimal-norm attack of foolbox or
    adversarial-library by import path, such as foolbox.attacks:DDNAttack. The regulariser takes
    deepfool and superdeepfool."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an attack that method names by import path."""
    max_projections: int = number(14, Range(minimum=0, unit="projections"))
    """For superdeepfool: largest number of projections, each of one forward pass and one
    gradient."""
    restarts: int = number(0, Range(minimum=0, maximum=1000, unit="starts"))
    """For superdeepfool, in evaluations: number of further starts, in random directions. They reach
    other parts of the boundary, each at the price of max_projections."""
    descent_steps: int = number(200, Range(minimum=1, unit="steps"))
    """For ddn and fmn: number of steps, each of one forward pass and one gradient."""
    num_candidates: int = number(10, Range(minimum=2, unit="classes"))
    """q: number of classes that are considered: those with the highest logits at the clean image,
    including its predicted class."""
    max_iterations: int = number(5, Range(minimum=1, unit="iterations"))
    """Largest number of iterations for an image. The paper: 5."""
    overshoot: float = number(0.02, Range(minimum=0))
    """The perturbation is multiplied by 1 + overshoot at the end, and in the test for a flip."""
    norm: float | Literal["inf"] = number(2.0, Range(above=1, infinity=True))
    """p: the norm in which the perturbation is minimised; above 1, or inf. The paper: 2."""
    step_direction: Literal["boundary", "loss_gradient"] = "boundary"
    """Direction of each step. boundary: towards the nearest linearised class boundary (DeepFool);
    loss_gradient: along the gradient of the cross-entropy, as far as the boundary to the runner-up.
    With max_iterations 1, loss_gradient is FGS for norm inf and a normalised gradient step for norm
    2."""
    linearize_at: Literal["current", "overshot"] = "current"
    """Point at which each iteration linearises the net. current: the image plus the sum of the
    steps, as in the Deep Defense authors' code; overshot: the image plus 1 + overshoot times that
    sum, where the class was tested, as in the DeepFool authors' code; it saves one forward pass an
    iteration."""
    target_class: Literal["reselect", "fixed"] = "reselect"
    """reselect: choose the class to move to in every iteration, as the paper does; fixed: keep the
    class of the first iteration."""
    candidate_search: Literal["exhaustive", "pruned"] = "exhaustive"
    """How the nearest boundary is searched. exhaustive: compute the gradient of every candidate
    class; pruned: visit candidates in the order of their expected distances, and stop when no
    remaining candidate can be nearer unless it is pruning_factor times nearer than expected."""
    pruning_factor: float = number(1.15, Range(minimum=1))
    """For candidate_search pruned: the factor by which a candidate may be nearer than expected. A
    larger factor visits more candidates."""

    def __post_init__(self) -> None:
        self.norm = float(self.norm)
        super().__post_init__()

    def check(self) -> None:
        """Check the names of the attacks."""
        names = f"{', '.join(BEST)} or best"
        paths = [name for name in self.methods if ":" in name]
        unknown = [name for name in self.methods if name not in (*BEST, *paths)]
        rule = f"{names}, package.module:name of one attack, or several joined by +"
        if unknown or len(paths) > 1:
            hint = did_you_mean(unknown[0], (*BEST, "best")) if unknown else ""
            raise OptionError("method", rule, self.method, hint)

    @property
    def methods(self) -> list[str]:
        """The attacks of ``method``, without duplicates, in the order in which they run."""
        names = BEST if self.method == "best" else tuple(self.method.split("+"))
        known = [name for name in BEST if name in names]
        return known + [name for name in dict.fromkeys(names) if name not in BEST]

    def describe(self, method: str) -> str:
        """A method with the options that only it has, for the protocol."""
        if method == "superdeepfool":
            starts = f", {self.restarts} random starts" if self.restarts else ""
            return f"{method}, at most {self.max_projections} projections{starts}"
        if method in ("ddn", "fmn"):
            return f"{method}, {self.descent_steps} steps"
        if ":" in method and self.options:
            return f"{method}, {json.dumps(self.options, sort_keys=True)}"
        return method

    @property
    def num_distances(self) -> int:
        """Number of distances that are stored for each image, beside the smallest."""
        return len(self.methods) if len(self.methods) > 1 else 0

    @property
    def reach(self) -> float:
        """Factor on the sum of the earlier steps, at the point where an iteration starts."""
        return 1.0 if self.linearize_at == "current" else 1.0 + self.overshoot


FgsDirectionKind = Literal["exact", "rounded"]


@dataclass(kw_only=True)
class FgsConfig(Section):
    """The fast gradient sign attack; eps is in units of evaluation.space."""

    eps: list[float] = number([], Range(minimum=0))
    """Values of eps; the accuracy after FGS is measured with each of them."""
    reference: float | str | None = number(None, Range(above=0))
    """eps_ref of a reference model: a number, or the folder of an evaluation that searched for it.
    The accuracy is measured at 0.2, 0.5 and 1.0 times this value."""
    search: bool = False
    """Search for the smallest eps that each image needs, and compute this model's eps_ref: the
    smallest eps that leaves at most half of the images classified correctly."""
    direction: FgsDirectionKind = "exact"
    """exact: the sign of the gradient of the cross-entropy CE, by that of log(exp(CE) - 1), which
    does not vanish. rounded: of CE as the net's precision rounds it, as in the paper. In fp32 the
    label's part is lost where the net is sure (logits 17 apart), and the attack is weaker."""

    @property
    def measured(self) -> list[float]:
        """Every eps at which the accuracy is measured, ascending.

        Raises:
            ValueError: ``reference`` still names a folder; see `pipeline.evaluation.reference`.
        """
        reference = self.reference
        if isinstance(reference, str):
            raise ValueError(f"evaluation.fgs.reference {reference} is not read yet")
        fractions = [] if reference is None else [f * reference for f in EPS_REF_FRACTIONS]
        return sorted({*self.eps, *fractions})

    @property
    def enabled(self) -> bool:
        """Whether FGS is used."""
        return self.search or bool(self.measured)


@dataclass(kw_only=True)
class EvaluationConfig(Section):
    """Accuracy and rho2, in training and in evaluate.py."""

    attack: AttackConfig = field(default_factory=AttackConfig)
    """The attack, for rho2."""
    fgs: FgsConfig = field(default_factory=FgsConfig)
    """FGS, which is measured in addition."""
    space: Literal["input", "pixels"] = "input"
    """Space of perturbations and norms. input: the network's input, after the normalisation, as in
    the paper; pixels: pixels in [0, 1], with the normalisation inside the model."""
    clip: bool = False
    """With space pixels: clip perturbed images to [0, 1]."""
    batch_size: int = number(100, Range(minimum=1, unit="images"))
    """Number of images in a batch of one rank."""
    num_images: int | None = number(None, Range(minimum=1, unit="images"))
    """Evaluate on this many images, evenly spaced in the index. Default: all."""
    diagnostics: bool = True
    """Measure for each image, in addition, how close its perturbation is to a smallest one (the
    cosine with the boundary's normal) and an upper bound of its distance (the line to an image of
    another class), and warn where they contradict the attack. Other attacks than deepfool always
    do, because the point on that line takes part."""
    lower_bound: bool = False
    """Measure for each image, in addition, a lower bound of its distance, in the norm and the units
    of space: no smaller perturbation changes its class. For small nets of ReLUs and max-pooling in
    fp32; other runs are evaluated without it, and say so."""
    every_epochs: int = number(1, Range(minimum=1, unit="epochs"))
    """Fine-tuning: number of epochs between evaluations. The net is always evaluated before and
    after fine-tuning too."""

    def check(self) -> None:
        """Clipping to [0, 1] has a meaning for pixels only."""
        clips = self.clip and self.space != "pixels"
        require(not clips, "clip", "false where evaluation.space is input", self.clip)
