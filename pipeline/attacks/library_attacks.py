"""Attacks of foolbox and adversarial-library, by import path.

In: package.module:name and options. Out: `LibraryAttack`, a function from images in [0, 1] to
adversarial images. A mistake is reported in one line.
"""

import importlib.util
import inspect
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.config.text import did_you_mean
from pipeline.errors import UserError
from pipeline.runtime.importing import import_callable, report_exceptions

METHOD, OPTIONS = "attack.method", "attack.options"
_INSTALLED_BY = {
    "adv_lib": "pip install adv-lib, with setuptools<81 (see the extra attacks in pyproject.toml)",
    "foolbox": "pip install foolbox",
}
_EXAMPLES = "adv_lib.attacks:ddn or foolbox.attacks:L2DeepFoolAttack"

# Attacks that compute every image of a batch by itself: neither a result nor its number of queries
# depends on the other images. Others stop together, or use random numbers.
_BATCHED = frozenset(
    {
        "adv_lib.attacks.augmented_lagrangian:alma",
        "adv_lib.attacks.decoupled_direction_norm:ddn",
        "adv_lib.attacks.deepfool:df",
        "adv_lib.attacks.fast_adaptive_boundary.fast_adaptive_boundary:fab",
        "adv_lib.attacks.fast_minimum_norm:fmn",
        "adv_lib.attacks.primal_dual_gradient_descent:pdgd",
        "adv_lib.attacks.superdeepfool:sdf",
        "adv_lib.attacks.trust_region:tr",
        "foolbox.attacks.ddn:DDNAttack",
        "foolbox.attacks.fast_minimum_norm:L2FMNAttack",
        "foolbox.attacks.fast_minimum_norm:LInfFMNAttack",
    }
)
# Of these, the attacks that use random numbers only for images whose gradient vanishes.
_NOISE_WITHOUT_GRADIENT = frozenset(
    {"adv_lib.attacks.decoupled_direction_norm:ddn", "foolbox.attacks.ddn:DDNAttack"}
)
# Values that replace the libraries' defaults. levels: DDN rounds its result to 256 grey levels,
# which only images on that grid can take.
_DEFAULTS: dict[str, Any] = {"levels": None}
# Parameters that the adapter sets itself, or that would change what the function returns.
_RESERVED = frozenset(
    {"targeted", "callback", "return_targets", "return_unsuccessful", "starting_points"}
)


@dataclass(frozen=True)
class LibraryAttack:
    """An attack with its options."""

    path: str  # as the user wrote it
    function: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """Of a net of images in [0, 1], images (N, C, H, W) in [0, 1] and labels (N,); returns images
    that are no longer of their label's class, (N, C, H, W)."""
    batched: bool  # whether an image's result does not depend on the others of its batch
    noise_without_gradient: bool  # random numbers only for images whose gradient vanishes
    norm: float | None  # p of the norm that it minimises; None: not known


def load(path: str, options: dict[str, Any]) -> LibraryAttack:
    """Import an attack and check its options.

    Args:
        path: package.module:name of a function (model, inputs, labels, **options) that returns
            adversarial inputs, as adversarial-library has them, or of a subclass of foolbox's
            MinimizationAttack.
        options: its options by name; Greek letters may be spelled out, as gamma; the text inf is
            infinity.

    Raises:
        UserError: it cannot be imported, is not of these kinds, searches no smallest perturbation,
            or does not take the options.
    """
    _check_installed(path)
    attack = import_callable(path, METHOD)
    options = {name: math.inf if value == "inf" else value for name, value in options.items()}
    if isinstance(attack, type):
        function, norm = _foolbox_function(path, attack, options)
    else:
        function, norm = _plain_function(path, attack, options), None
    name = f"{getattr(attack, '__module__', '')}:{getattr(attack, '__qualname__', '')}"
    is_noisy = name in _NOISE_WITHOUT_GRADIENT
    return LibraryAttack(path, function, name in _BATCHED, is_noisy, norm)


def _check_installed(path: str) -> None:
    package = path.partition(":")[0].partition(".")[0]
    if package in _INSTALLED_BY and importlib.util.find_spec(package) is None:
        raise UserError(
            f"{METHOD}: {path} cannot be imported: {package} is not installed; install it by "
            f"{_INSTALLED_BY[package]}"
        )


def _foolbox_function(path: str, attack: type, options: dict[str, Any]) -> tuple[Any, float | None]:
    """The function of a class of foolbox, and p of the norm that it minimises."""
    if importlib.util.find_spec("foolbox") is None:
        raise UserError(_wrong_kind(path))
    from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack
    from foolbox.criteria import Misclassification
    from foolbox.models.pytorch import PyTorchModel

    if issubclass(attack, FixedEpsilonAttack):
        raise UserError(_not_minimal(path))
    if not issubclass(attack, MinimizationAttack):
        raise UserError(_wrong_kind(path))
    checked = _checked_options(path, list(inspect.signature(attack).parameters.values()), options)
    with report_exceptions(path, METHOD):
        instance = attack(**checked)

    def call(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        wrapped = PyTorchModel(model, bounds=(0, 1), device=images.device)
        return instance.run(wrapped, images, Misclassification(labels))

    return call, _norm_of(instance)


def _norm_of(instance: Any) -> float | None:
    """p of the norm that an attack of foolbox minimises; None if it states none."""
    try:
        return float(instance.distance.p)
    except (AttributeError, TypeError, ValueError):  # a property that raises, or another distance
        return None


def _plain_function(path: str, attack: Callable[..., Tensor], options: dict[str, Any]) -> Any:
    """A function of adversarial-library's kind with its options."""
    try:
        parameters = list(inspect.signature(attack).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 3:
        raise UserError(_wrong_kind(path))
    parameters = [p for p in parameters if p not in positional[:3]]
    if any(_spelled(p.name) in ("eps", "epsilon") and p.default is p.empty for p in parameters):
        raise UserError(_not_minimal(path))
    checked = _checked_options(path, parameters, options)
    if any(p.name == "targeted" for p in parameters):
        checked["targeted"] = False

    def call(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return attack(model, images, labels, **checked)

    return call


def _checked_options(
    path: str, parameters: list[inspect.Parameter], options: dict[str, Any]
) -> dict[str, Any]:
    """The options by the names of the parameters, with the defaults of the adapter."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters if p.kind not in variable]
    known = {_spelled(p.name): p for p in named if p.name not in _RESERVED}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    checked = {p.name: _DEFAULTS[p.name] for p in known.values() if p.name in _DEFAULTS}
    for option, value in options.items():
        parameter = known.get(_spelled(option))
        if parameter is None and (option in _RESERVED or not takes_any):
            raise UserError(
                f"{OPTIONS}: {path} takes no option {option!r} here; its options: "
                f"{', '.join(known) or 'none'}{did_you_mean(option, list(known))}"
            )
        checked[option if parameter is None else parameter.name] = value
    missing = [
        spelled for spelled, p in known.items() if p.default is p.empty and p.name not in checked
    ]
    if missing:
        raise UserError(f"{OPTIONS}: {path} needs {', '.join(missing)}; set it in {OPTIONS}")
    return checked


def _spelled(name: str) -> str:
    """A name with Greek letters spelled out, as adversarial-library's parameters have them."""
    prefix = "GREEK SMALL LETTER "
    names = [(letter, unicodedata.name(letter, letter)) for letter in name]
    return "".join(
        full.removeprefix(prefix).lower() if full.startswith(prefix) else letter
        for letter, full in names
    )


def _not_minimal(path: str) -> str:
    return (
        f"{METHOD}: {path} attacks within a given eps and searches no smallest perturbation; use "
        f"an attack that does, such as {_EXAMPLES}"
    )


def _wrong_kind(path: str) -> str:
    return (
        f"{METHOD}: {path} is neither a function (model, inputs, labels, **options) nor a subclass "
        f"of foolbox's MinimizationAttack; use one, such as {_EXAMPLES}"
    )
