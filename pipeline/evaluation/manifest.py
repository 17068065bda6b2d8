"""manifest.json: what the results of a shard are of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.parse import differences
from pipeline.errors import UserError
from pipeline.runtime.json_checks import (
    LIST,
    NOTHING,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE_NUMBER,
    Kinds,
    lacking,
)

_IDENTITY: Kinds = {
    "num_indexed": WHOLE_NUMBER,
    "num_images": WHOLE_NUMBER + NOTHING,
    "input": OBJECT,
    "definition": OBJECT,
}
_INPUT: Kinds = {
    **dict.fromkeys(("crop", "resize", "channels"), WHOLE_NUMBER),
    "mean": LIST + TEXT,
    "std": LIST,
}
_DEFINITION: Kinds = {
    **dict.fromkeys(("norm", "space", "precision"), TEXT),
    **dict.fromkeys(("num_candidates", "max_iterations"), WHOLE_NUMBER),
    "overshoot": NUMBER,
    "fgs": OBJECT + NOTHING,
}
_ABOUT: Kinds = {"batch_difference": NUMBER, "kernels": OBJECT}
_ABOUT_DEFAULTS = {"batch_difference": 0.0, "kernels": {}}  # of manifests of older versions
_FGS: Kinds = {"eps": LIST, "reference": NUMBER + NOTHING, "search": (bool,)}


@dataclass(frozen=True)
class Manifest:
    """What a shard's results are of."""

    identity: dict[str, Any]  # equal in all shards of an evaluation
    about: dict[str, Any]  # what else a report needs to know: names of classes, the index's path

    @property
    def num_eps(self) -> int:
        """Columns of `Samples.fgs_correct`."""
        return num_eps(self.identity)

    @property
    def batch_difference(self) -> float:
        """By how much an image's logits and gradients depended on its batch; 0: not at all."""
        return self.about.get("batch_difference", 0.0)

    def differences(self, other: "Manifest") -> str:
        """Where the identities differ, as ``what: mine -> theirs``; empty if nowhere."""
        return "; ".join(differences(self.identity, other.identity, ()))


def num_eps(identity: dict[str, Any]) -> int:
    """At how many eps the accuracy after FGS was measured."""
    fgs = identity["definition"]["fgs"]
    return len(fgs["eps"]) if fgs else 0


def identity_problem(identity: Any) -> str:
    """What an identity lacks, as a phrase to follow the file's name; empty if nothing."""
    problem = (
        lacking(identity, _IDENTITY)
        or lacking(identity["input"], _INPUT)
        or lacking(identity["definition"], _DEFINITION)
    )
    if problem or not identity["definition"]["fgs"]:
        return problem
    return lacking(identity["definition"]["fgs"], _FGS)


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        UserError: it is damaged.
    """
    values: dict[str, Any] = {}
    try:
        values = json.loads(path.read_text())
        problem = lacking(values, {"identity": OBJECT, "about": OBJECT})
        problem = problem or identity_problem(values["identity"])
        problem = problem or lacking(values["about"], {"class_names": LIST})
        problem = problem or lacking({**_ABOUT_DEFAULTS, **values["about"]}, _ABOUT)
    except (OSError, ValueError):
        problem = "cannot be read"
    if problem:
        raise UserError(f"{path} is damaged: it {problem}; move its folder away and evaluate again")
    return Manifest(values["identity"], values["about"])
