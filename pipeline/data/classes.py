"""Classes in the order of their labels: names and identities.

A class is identified by the name of its folder, which for ILSVRC is its WordNet id. Indices and
weights record the identities, so that weights are not used with labels of other classes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from pipeline.errors import first_few


@dataclass(frozen=True)
class Classes:
    """The classes of an index or of weights; label k belongs to the k-th.

    Attributes:
        names: K names, for display.
        ids: K identities; None in older files without them, whose classes are compared by name.
    """

    names: list[str]
    ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identities(self) -> list[str]:
        """The ids, or the names where no ids were recorded."""
        return self.names if self.ids is None else self.ids

    def to_dict(self) -> dict[str, list[str]]:
        """Lists of strings, for files."""
        return {"names": list(self.names), "ids": list(self.identities)}

    @classmethod
    def from_dict(cls, values: Any) -> "Classes | None":
        """The classes of `to_dict`; None for anything else."""
        if not isinstance(values, dict):
            return None
        names, ids = values.get("names"), values.get("ids")
        if not (is_list_of_strings(names) and is_list_of_strings(ids) and len(names) == len(ids)):
            return None
        return cls(names, ids)

    @classmethod
    def from_json(cls, text: str | None) -> "Classes | None":
        """The classes of `to_dict` as JSON; None for anything else."""
        try:
            return cls.from_dict(json.loads(text or "null"))
        except ValueError:
            return None


def is_list_of_strings(value: Any) -> TypeGuard[list[str]]:
    """Whether a value from a file is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def difference(actual: Classes, expected: Classes) -> str:
    """A description of how two lists of classes differ; empty if they are equal.

    Args:
        actual: the classes that the text describes.
        expected: the classes that they should be.
    """
    pairs = [(actual.identities, expected.identities)]
    if actual.ids is None or expected.ids is None:
        pairs += [(actual.names, expected.names)]
        pairs += [(actual.names, expected.identities), (actual.identities, expected.names)]
    if any(list(one) == list(two) for one, two in pairs):
        return ""
    return _describe(*max(pairs, key=lambda pair: len({*pair[0]} & {*pair[1]})))


def _describe(actual: Sequence[str], expected: Sequence[str]) -> str:
    shared = min(len(actual), len(expected))
    label = next((k for k in range(shared) if actual[k] != expected[k]), shared)
    if label < shared:
        text = f"label {label} is {actual[label]!r}, not {expected[label]!r}"
    else:
        text = f"the first {label} are the same"
    if len(actual) != len(expected):
        text += f"; {len(actual)} classes, not {len(expected)}"
    actual_names, expected_names = set(actual), set(expected)
    missing = [repr(name) for name in expected if name not in actual_names]
    extra = [repr(name) for name in actual if name not in expected_names]
    if missing:
        text += f"; missing: {first_few(missing, 3)}"
    if extra:
        text += f"; unexpected: {first_few(extra, 3)}"
    return text


def describe_label_shift(index: Classes, categories: Sequence[str]) -> str:
    """Name a class whose label in an index is not its output by torchvision's weights.

    Lists spell names differently, so only names count that occur in both lists, and once among the
    categories. The labels differ if more than half of these names have another label.

    Args:
        index: the classes of an index.
        categories: names in the order of the net's outputs.

    Returns:
        A clause with the first such name and its two labels; empty if the labels do not differ.
    """
    shift = first_shift(index.names, categories)
    if shift is None:
        return ""
    name, label, output = shift
    return f"{name!r} is label {label} of the index and output {output} of the net"


def first_shift(names: Sequence[str], others: Sequence[str]) -> tuple[str, int, int] | None:
    """Where the order of two lists of names differs, if it does for most names that they share.

    Args:
        names: names in the order of their labels.
        others: names in the order of theirs. A name that occurs here more than once is not used.

    Returns:
        The first shared name with another label, its label, and its label in ``others``; None if
        at most half of the shared names have another label.
    """
    counts = Counter(others)
    position = {name: k for k, name in enumerate(others) if counts[name] == 1}
    common = [(label, name) for label, name in enumerate(names) if name in position]
    shifted = [(label, name) for label, name in common if position[name] != label]
    if not shifted or 2 * len(shifted) <= len(common):
        return None
    label, name = shifted[0]
    return name, label, position[name]
