"""The protocol of an evaluation: how its numbers were measured.

In: the options of an evaluation. Out: the records that are stored with the numbers.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import AttackConfig, DataConfig, EvaluationConfig, FgsConfig, RuntimeConfig
from pipeline.data import mean_image
from pipeline.runtime.json_checks import (
    LIST,
    NOTHING,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE_NUMBER,
    Kinds,
    check_object,
)

# Names and values in stored protocols are those of the first version, so that results of all
# versions can be compared and merged; some options have been renamed since.
_TARGET_CLASS = {"reselect": "every", "fixed": "first"}
LINEARISED_AT = {
    "current": "x + sum of steps, without overshoot",
    "overshot": "the point where the class was tested, with overshoot",
}

_NAMES = {"deepfool": "DeepFool", "superdeepfool": "SuperDeepFool", "ddn": "DDN", "fmn": "FMN"}

SPACES = {
    "input": "network input, after normalisation",
    "pixels": "pixels in [0, 1], normalisation inside the model",
}

PREPROCESSING_KINDS: Kinds = {
    "mean": LIST + TEXT,
    "crop": WHOLE_NUMBER,
    "resize": WHOLE_NUMBER,
    "interpolation": TEXT,
    "channels": WHOLE_NUMBER,
    "std": LIST,
    "decoder": TEXT,
}
_FGS_KINDS: Kinds = {
    "eps": LIST,
    "reference": NUMBER + NOTHING,
    "search": (bool,),
    "direction": TEXT,
}
_PROTOCOL_KINDS: Kinds = {
    **dict.fromkeys(("measure", "norm", "classes", "visit", "linearised_at"), TEXT),
    **dict.fromkeys(("space", "precision"), TEXT),
    **dict.fromkeys(("num_candidates", "max_iterations"), WHOLE_NUMBER),
    "overshoot": NUMBER,
    "direction": TEXT + NOTHING,
    "methods": LIST + NOTHING,
    "fgs": OBJECT + NOTHING,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing of images. It does not depend on where files are stored."""

    mean: list[float] | str  # mean of each channel, or the hash of a mean image
    crop: int
    resize: int
    interpolation: str
    channels: int
    std: list[float]
    decoder: str | None  # cpu, gpu or "cpu and gpu"; None: not known before the run

    def to_dict(self) -> dict[str, Any]:
        """The values that manifest.json stores."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FgsProtocol:
    """The values of eps of FGS."""

    eps: list[float]  # the accuracy was measured after FGS with each of these
    reference: float | None  # eps_ref of another model, whose fractions are in ``eps``
    search: bool  # whether the smallest eps of each image was searched for
    direction: str  # exact or rounded


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the numbers of an evaluation were measured; stored under the key ``definition``."""

    measure: str  # definition of the mean ratio rho
    norm: str  # p of the norm, such as 2 or inf
    num_candidates: int
    max_iterations: int
    overshoot: float
    classes: str  # how the class that a step moves to is chosen
    visit: str  # which candidates' gradients are computed
    direction: str | None = None  # direction of steps; None: the normal of the nearest boundary
    methods: list[str] | None = None  # attacks with their options; None: DeepFool
    linearised_at: str
    space: str  # space of the perturbations
    precision: str
    fgs: FgsProtocol | None  # None: FGS was not used

    @property
    def rho_name(self) -> str:
        """rho2, rho_inf, rho1.5: the name of the mean ratio in this norm."""
        return rho_name(self.norm)

    @property
    def method_names(self) -> list[str]:
        """Names of the attacks, without their options, in the order of `Samples.distances`."""
        return [description.partition(",")[0] for description in self.methods or ["deepfool"]]

    @property
    def uses_deepfool(self) -> bool:
        """Whether one of the attacks searches as DeepFool does."""
        return not {"deepfool", "superdeepfool"}.isdisjoint(self.method_names)

    @property
    def deepfool_limits(self) -> str:
        """The limits of DeepFool's search, as "q 10, at most 5 iterations, "; empty if no method
        uses DeepFool."""
        if not self.uses_deepfool:
            return ""
        return f"q {self.num_candidates}, at most {self.max_iterations} iterations, "

    @property
    def num_distances(self) -> int:
        """Number of methods whose distances are stored beside the smallest."""
        return len(self.methods) if self.methods and len(self.methods) > 1 else 0

    @property
    def num_eps(self) -> int:
        """Number of eps with which the accuracy after FGS was measured."""
        return len(self.fgs.eps) if self.fgs else 0

    def to_dict(self) -> dict[str, Any]:
        """The stored values. None of direction and methods is left out, as in files of earlier
        versions."""
        values = asdict(self)
        for name in ("direction", "methods"):
            if values[name] is None:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "Protocol":
        """Create it from the values of a file.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        if isinstance(values, dict):
            values = {"direction": None, "methods": None, **values}
        try:
            check_object(values, _PROTOCOL_KINDS)
        except ValueError as error:
            raise ValueError(f"{error} of its definition") from None
        if values["fgs"] is not None:
            fgs = {"direction": "rounded", **values["fgs"]}  # earlier versions record none
            fgs = FgsProtocol(**check_object(fgs, _FGS_KINDS))
            values = {**values, "fgs": fgs}
        return cls(**values)


def evaluation_protocol(
    evaluation: EvaluationConfig, runtime: RuntimeConfig, num_classes: int
) -> Protocol:
    """The protocol of an evaluation with these options."""
    attack, fgs = evaluation.attack, evaluation.fgs
    p = f"{float(attack.norm):g}"  # 2, inf, 1.5
    by_loss = attack.step_direction == "loss_gradient"
    return Protocol(
        measure=_measure(attack, p),
        norm=p,
        num_candidates=min(attack.num_candidates, num_classes),
        max_iterations=attack.max_iterations,
        overshoot=attack.overshoot,
        classes=_TARGET_CLASS[attack.target_class],
        visit=_visit(attack),
        direction="gradient of the cross-entropy" if by_loss else None,
        methods=None if attack.methods == ["deepfool"] else [*map(attack.describe, attack.methods)],
        linearised_at=LINEARISED_AT[attack.linearize_at],
        space=space_of(evaluation),
        precision="tf32" if runtime.tf32 else "fp32",
        fgs=_fgs_protocol(fgs) if fgs.enabled else None,
    )


def space_of(evaluation: EvaluationConfig) -> str:
    """The space of the perturbations, as protocols state it."""
    return SPACES[evaluation.space] + (", perturbed images cut to it" if evaluation.clip else "")


def _measure(attack: AttackConfig, p: str) -> str:
    first, *others = attack.methods
    name = "the smallest of several attacks" if others else _NAMES.get(first, first)
    return (
        f"mean of ||dx||_{p} / ||x||_{p}, {name} from the predicted class; over all samples, "
        "never flipped ones with their perturbation so far, but those without a gradient"
    )


def _visit(attack: AttackConfig) -> str:
    if attack.candidate_search == "exhaustive":
        return "all"
    return f"lazy, safety {attack.pruning_factor:g}"


def _fgs_protocol(fgs: FgsConfig) -> FgsProtocol:
    assert not isinstance(fgs.reference, str), "resolve_reference has replaced it by a number"
    return FgsProtocol(
        eps=fgs.measured, reference=fgs.reference, search=fgs.search, direction=fgs.direction
    )


def preprocessing_of(data: DataConfig, device_type: str | None) -> Preprocessing:
    """The preprocessing with these options.

    Args:
        data: the options.
        device_type: type of the run's device, cpu or cuda; None if it is not known yet.
    """
    is_known = device_type is not None or data.decoder != "auto"
    return Preprocessing(
        mean=mean_image.identity(data),
        crop=data.crop_size,
        resize=data.resize_size,
        interpolation=data.interpolation,
        channels=data.channels,
        std=data.std,
        decoder=data.decoder_on(device_type or "") if is_known else None,
    )


def rho_name(norm: float | str) -> str:
    """The name of the mean ratio in a norm, as an option or as stored: rho2, rho_inf, rho1.5."""
    p = f"{float(norm):g}"
    return f"rho_{p}" if p == "inf" else f"rho{p}"
