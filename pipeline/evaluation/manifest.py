"""manifest.json: which evaluation the results of a shard belong to."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
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
    schema_problem,
)
from pipeline.runtime.machine import is_gpu_name

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
    "mix_decoders": (bool,),
}
# Manifests of older versions lack them.
_ABOUT_DEFAULTS = {
    "batch_difference": 0.0,
    "kernels": {},
    "no_lower_bound": "",
    "mix_decoders": False,
}
_AND = " and "  # between the decoders of merged results


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

    def __post_init__(self) -> None:
        """A limit that leaves out no image is none, also in files of earlier versions."""
        if self.num_images is not None and self.num_images >= self.num_indexed:
            object.__setattr__(self, "num_images", None)

    def to_dict(self) -> dict[str, Any]:
        """The values that manifest.json, summary.json and samples.parquet store."""
        values = asdict(self)
        del values["protocol"]
        return {**values, "input": self.input.to_dict(), "definition": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, values: Any, devices: Iterable[str] = ()) -> "Identity":
        """Create it from the values of a file.

        Args:
            values: the values.
            devices: names of the devices in the same file. Earlier versions recorded no decoder; a
                run's device decoded its images.

        Raises:
            ValueError: the message is a phrase about what is wrong with them.
        """
        check_object(values, IDENTITY_KINDS)
        plain = {name: values[name] for name in values if name not in ("input", "definition")}
        decoders = ["gpu" if is_gpu_name(device) else "cpu" for device in devices]
        preprocessing = {"decoder": _joined(decoders or ["cpu"]), **values["input"]}
        return cls(
            **plain,
            input=Preprocessing(**check_object(preprocessing, PREPROCESSING_KINDS)),
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

    @property
    def mix_decoders(self) -> bool:
        """Whether results of another decoder may be merged with these."""
        return self.about.get("mix_decoders", False)

    def differences(self, other: "Manifest", free: tuple[str, ...] = ()) -> str:
        """How another identity differs, as ``key: this -> other``; empty if it is equal.

        Decoders are left out if one of them is not known, or if one of the manifests allows both.

        Args:
            other: the manifest with the other identity.
            free: keys that are left out.
        """
        known = None not in (self.identity.input.decoder, other.identity.input.decoder)
        if known and not (self.mix_decoders or other.mix_decoders):
            return self._differences(other, free)
        return self._differences(other, (*free, "input.decoder"))

    def differs_by_decoder_alone(self, other: "Manifest") -> bool:
        """Whether another identity has another decoder, and is equal otherwise."""
        return bool(self.differences(other)) and not self._differences(other, ("input.decoder",))

    def _differences(self, other: "Manifest", free: tuple[str, ...]) -> str:
        return "; ".join(differences(self.identity.to_dict(), other.identity.to_dict(), free))

    def merged(self, other: "Manifest") -> "Manifest":
        """The manifest of these results and those of ``other``, from which it differs by the
        decoder at most."""
        preprocessing = self.identity.input
        decoders = (preprocessing.decoder, other.identity.input.decoder)
        decoder = _joined([name for name in decoders if name is not None])
        identity = replace(self.identity, input=replace(preprocessing, decoder=decoder))
        merged = replace(self, identity=identity)
        return merged.allowing_both_decoders() if other.mix_decoders else merged

    def allowing_both_decoders(self) -> "Manifest":
        """The same with `mix_decoders`."""
        return replace(self, about={**self.about, "mix_decoders": True})

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
        kernels = values["about"].get("kernels")
        devices = [str(kernels.get("device"))] if isinstance(kernels, dict) else []
        identity = Identity.from_dict(values["identity"], devices)
        problem = schema_problem({**_ABOUT_DEFAULTS, **values["about"]}, _ABOUT_KINDS)
        if problem:
            raise ValueError(problem)
        return cls(identity, values["about"])


def read_manifests(paths: list[Path]) -> list[Manifest]:
    """Read the manifests of a folder's shards. If one of them allows both decoders, all do.

    Raises:
        UserError: one is damaged.
    """
    manifests = [read_manifest(path) for path in paths]
    if any(manifest.mix_decoders for manifest in manifests):
        return [manifest.allowing_both_decoders() for manifest in manifests]
    return manifests


def _joined(decoders: Iterable[str]) -> str:
    """The names of several decoders, or of the only one."""
    return _AND.join(sorted({name for names in decoders for name in names.split(_AND)}))


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
