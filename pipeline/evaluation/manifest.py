"""manifest.json: which evaluation the results of a shard belong to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config.parse import differences
from pipeline.errors import UserError
from pipeline.evaluation.protocol import PREPROCESSING_KINDS, Preprocessing, Protocol
from pipeline.runtime.json_checks import (
    LIST,
    NOTHING,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE_NUMBER,
    Kinds,
    check_object,
    lacking,
)

IDENTITY_KINDS: Kinds = {
    **dict.fromkeys(("model", "weights", "index"), TEXT),
    "num_indexed": WHOLE_NUMBER,
    "num_images": WHOLE_NUMBER + NOTHING,
    "input": OBJECT,
    "definition": OBJECT,
}
_ABOUT_KINDS: Kinds = {
    "class_names": LIST,
    "batch_difference": NUMBER,
    "kernels": OBJECT,
    "no_lower_bound": TEXT,
}
# Manifests of older versions lack them.
_ABOUT_DEFAULTS = {"batch_difference": 0.0, "kernels": {}, "no_lower_bound": ""}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What was evaluated, and how. It is equal in all shards of an evaluation."""

    model: str
    weights: str  # hash of the weights
    index: str  # hash of the index
    num_indexed: int
    num_images: int | None  # evaluated, evenly spaced in the index; None: all
    input: Preprocessing
    protocol: Protocol

    def to_dict(self) -> dict[str, Any]:
        """The values that manifest.json, summary.json and samples.parquet store."""
        values = asdict(self)
        del values["protocol"]
        return {**values, "input": self.input.to_dict(), "definition": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> "Identity":
        """Create it from the values of a file.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        check_object(values, IDENTITY_KINDS)
        plain = {name: values[name] for name in values if name not in ("input", "definition")}
        return cls(
            **plain,
            input=Preprocessing(**check_object(values["input"], PREPROCESSING_KINDS)),
            protocol=Protocol.from_dict(values["definition"]),
        )


@dataclass(frozen=True)
class Manifest:
    """Which evaluation a shard's results belong to."""

    identity: Identity
    # Values that are not compared: names of classes, the index's path, the machine's kernels.
    about: dict[str, Any]

    @property
    def batch_difference(self) -> float:
        """The largest relative difference of an image's logits and gradients between batches."""
        return self.about.get("batch_difference", 0.0)

    @property
    def no_lower_bound(self) -> str:
        """Why evaluation.lower_bound measured nothing; empty if it did, or was false."""
        return self.about.get("no_lower_bound", "")

    def differences(self, other: "Manifest") -> str:
        """How another identity differs, as ``key: this -> other``; empty if it is equal."""
        return "; ".join(differences(self.identity.to_dict(), other.identity.to_dict(), ()))

    def to_dict(self) -> dict[str, Any]:
        """The values that manifest.json stores."""
        return {"identity": self.identity.to_dict(), "about": self.about}

    @classmethod
    def from_dict(cls, values: Any) -> "Manifest":
        """Create it from the values of a file.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        check_object(values, {"identity": OBJECT, "about": OBJECT})
        identity = Identity.from_dict(values["identity"])
        problem = lacking({**_ABOUT_DEFAULTS, **values["about"]}, _ABOUT_KINDS)
        if problem:
            raise ValueError(problem)
        return cls(identity, values["about"])


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        UserError: it is damaged.
    """
    remedy = "move its folder away and evaluate again"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path} is damaged: it cannot be read; {remedy}") from None
    try:
        return Manifest.from_dict(values)
    except ValueError as error:
        raise UserError(f"{path} is damaged: it {error}; {remedy}") from None
