"""What reports and model cards call the training methods."""

_TITLES = {
    "deep_defense": "Deep Defense",
    "adversarial_2": "adversarial training",
    "parseval": "Parseval training",
    "clean": "the cross-entropy alone",
}
_LABELS = {"adversarial_2": "Adversarial training", "clean": "Clean fine-tuning"}


def in_text(method: str) -> str:
    """A value of objective.method inside a sentence; a method from elsewhere is its import path."""
    return " and ".join(_TITLES.get(name, name) for name in method.split("+"))


def label(method: str) -> str:
    """A value of objective.method as the label of a row or a curve; of an import path, the class.

    A table takes what precedes a colon for the name of the net.
    """
    labels = _TITLES | _LABELS
    return " + ".join(labels.get(name, name.rpartition(":")[2]) for name in method.split("+"))
