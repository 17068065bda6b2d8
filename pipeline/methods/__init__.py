"""Training methods: Deep Defense, and the methods that the paper compares it with.

In: a batch after its clean forward pass. Out: terms that are added to the cross-entropy, and
changes to the weights after each optimiser step. ``objective.method`` names the methods, joined
by +.
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
CLEAN = "clean"  # no method: only the cross-entropy


def make(config: FinetuneConfig, view: AttackView) -> list[Method]:
    """The methods that the configuration names, in its order.

    Args:
        config: the options of the run.
        view: the net as an attack sees it.

    Raises:
        UserError: there is no such method, or an option that it needs is missing.
    """
    names = [name for name in config.objective.method.split("+") if name != CLEAN]
    methods = [_construct(name, config, view) for name in names]
    return [method for method in methods if method.active]


def _construct(name: str, config: FinetuneConfig, view: AttackView) -> Method:
    if name in METHODS:
        return METHODS[name](config, view)
    method = _import_method(name)
    with report_exceptions(name, "objective.method"):
        return method(config, view)


def _import_method(name: str) -> type[Method]:
    """Import a user's method by package.module:Class."""
    if ":" not in name:
        names = [CLEAN, *METHODS]
        raise UserError(
            f"objective.method: no method {name!r}; use {', '.join(names)}, several of them "
            f"joined by +, or package.module:Class{did_you_mean(name, names)}"
        )
    method = import_callable(name, "objective.method")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"objective.method: {name} is no subclass of pipeline.methods.Method")
    return method
