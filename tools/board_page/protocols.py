"""Which rows may be on one page: those that were measured alike on the same images.

In: rows. Out: `Page`s, and by what one differs from another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from board_page.rows import Row
from pipeline.config.parse import differences, flatten
from pipeline.evaluation.manifest import Identity
from pipeline.reports.evaluation_folders import EvaluationFolder, names

_IMAGES = ("index", "num_indexed", "num_images")


@dataclass(frozen=True)
class Page:
    """The rows of one protocol and one set of images."""

    number: int  # from 1
    rows: list[Row]

    @property
    def file_name(self) -> str:
        """Its file in the board's folder."""
        return f"protocol-{self.number}.html"

    @property
    def evaluation_folders(self) -> list[EvaluationFolder]:
        """The folder of each row."""
        return [row.evaluation_folder for row in self.rows]

    @property
    def identity(self) -> Identity:
        """How the first row was measured."""
        return self.rows[0].identity

    @property
    def title(self) -> str:
        """The attacks, the norm and the number of images."""
        protocol, values = self.identity.protocol, measured(self.identity)
        attacks = " + ".join(protocol.method_names)
        return f"{attacks}, L{protocol.norm}, {values['num_images']:,} images"

    @property
    def protocol(self) -> dict[str, Any]:
        """How the rows were measured, by the names of `Protocol` and `Identity`."""
        values = measured(self.identity)
        return {**values.pop("definition"), **values}

    def differences(self, other: "Page") -> list[str]:
        """By what another page differs, as ``name: this -> other``."""
        here, there = measured(self.identity), measured(other.identity)
        # The sentence ``measure`` follows from norm and methods.
        same = here["definition"]["methods"] == there["definition"]["methods"]
        lines = differences(here, there, () if same else ("definition.measure",))
        return [line.removeprefix("definition.") for line in lines]

    def preprocessing_differences(self) -> dict[str, str]:
        """The options of preprocessing in which rows differ, with their values."""
        options = [flatten(row.identity.input.to_dict()) for row in self.rows]
        values = {name: list(dict.fromkeys(str(o[name]) for o in options)) for name in options[0]}
        return {name: ", ".join(texts) for name, texts in values.items() if len(texts) > 1}


def measured(identity: Identity) -> dict[str, Any]:
    """What rows of one page have in common: the images, and the protocol without FGS, which changes
    neither rho nor the accuracy."""
    values, protocol = identity.to_dict(), identity.protocol
    definition = {name: v for name, v in values["definition"].items() if name != "fgs"}
    definition["methods"] = " + ".join(protocol.methods or protocol.method_names)
    images = {name: values[name] for name in _IMAGES}
    images["num_images"] = images["num_images"] or images["num_indexed"]
    return {**images, "definition": definition}


def pages_of(rows: Sequence[Row]) -> list[Page]:
    """The pages, those with most rows first. Names distinguish the rows of a page."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(measured(row.identity), sort_keys=True), []).append(row)
    by_size = sorted(groups.values(), key=len, reverse=True)
    return [Page(number, _named(members)) for number, members in enumerate(by_size, 1)]


def _named(rows: list[Row]) -> list[Row]:
    return [
        replace(row, name=name)
        for row, name in zip(rows, names([row.evaluation_folder for row in rows]), strict=True)
    ]
