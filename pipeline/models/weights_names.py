"""Values of ``model.weights``: files, or names of published weights. Imports without torch."""

from pathlib import Path

PRETRAINED = "pretrained"  # the weights that timm publishes for a net


def is_file_name(name: str) -> bool:
    """Whether ``model.weights`` is a file, not the name of published weights."""
    if name == PRETRAINED:  # also where a folder of this name exists
        return False
    return Path(name).suffix != "" or "/" in name or Path(name).exists()
