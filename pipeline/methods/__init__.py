"""What training adds to the cross-entropy: Deep Defense, and what the paper compares it with.

In: a batch whose clean forward was made. Out: terms of the loss, and what is done to the weights
after each optimiser step. ``objective.method`` names them, joined by +.
"""

from pipeline.config import FinetuneConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError
from pipeline.models.attack_view import AttackView
from pipeline.runtime.importing import import_callable, report_exceptions

from .adversarial import AdversarialTraining
from .base import Clean, Method, Term
from .deep_defense import DeepDefense
from .parseval import Parseval

__all__ = ["METHODS", "Clean", "Method", "Term", "make"]

METHODS: dict[str, type[Method]] = {
    "deep_defense": DeepDefense,
    "adversarial_2": AdversarialTraining,
    "parseval": Parseval,
}
CLEAN = "clean"  # none of them


def make(config: FinetuneConfig, view: AttackView) -> list[Method]:
    """The methods that the configuration names, in its order.

    Raises:
        UserError: there is no such method, or its options are missing.
    """
    names = [name for name in config.objective.method.split("+") if name != CLEAN]
    methods = [_construct(name, config, view) for name in names]
    return [method for method in methods if method.active]


def _construct(name: str, config: FinetuneConfig, view: AttackView) -> Method:
    cls = _class(name)
    if name in METHODS:
        return cls(config, view)
    with report_exceptions(name, "objective.method"):
        return cls(config, view)


def _class(name: str) -> type[Method]:
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise UserError(
            f"objective.method: no method {name!r}; use {', '.join([CLEAN, *METHODS])}, several "
            f"joined by +, or package.module:Class{did_you_mean(name, [CLEAN, *METHODS])}"
        )
    found = import_callable(name, "objective.method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"objective.method: {name} is no subclass of pipeline.methods.Method")
    return found
