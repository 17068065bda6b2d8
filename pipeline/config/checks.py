"""Rules of options: what a value must be, and how a wrong one is refused.

Every numeric option has a `Range` in its field's metadata, by `number`; `Section` enforces it.
"""

import math
import types
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class OptionError(ValueError):
    """An option has a value that it must not have.

    Attributes:
        option: its full name, as section.option.
        rule: what the value must be.
        value: the value.
        hint: what was probably meant, as `pipeline.config.text.did_you_mean` writes it.
    """

    def __init__(self, option: str, rule: str, value: Any, hint: str = "") -> None:
        super().__init__(f"{option} must be {rule}, got {shown(value)}{hint}")
        self.option, self.rule, self.value, self.hint = option, rule, value, hint

    def within(self, section: str) -> "OptionError":
        """The same error with the name of the section that the option is in."""
        return OptionError(f"{section}.{self.option}", self.rule, self.value, self.hint)


def require(condition: bool, option: str, rule: str, value: Any) -> None:
    """Refuse an option's value.

    Raises:
        OptionError: unless the condition holds; names the option and the rule.
    """
    if not condition:
        raise OptionError(option, rule, value)


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    return {None: "null", True: "true", False: "false"}[value] if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes; NaN is in no range."""

    minimum: float | None = None  # itself allowed
    maximum: float | None = None  # itself allowed
    above: float | None = None  # itself not allowed
    below: float | None = None  # itself not allowed
    unit: str = ""  # shown by --help
    infinity: bool = False  # whether +inf is allowed; -inf is not

    def admits(self, value: float) -> bool:
        """Whether a number lies in the range."""
        if isinstance(value, float) and not math.isfinite(value):
            return self.infinity and value > 0
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def append_to(self, text: str) -> str:
        """The help text of an option, with its range and unit at the end."""
        unit = f"; unit: {self.unit}" if self.unit else ""
        return f"{text} [range: {self}{unit}]"

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            limits = [f"from {self.minimum} to {self.maximum}"]
        else:
            bounds = {
                "at least": self.minimum,
                "above": self.above,
                "at most": self.maximum,
                "below": self.below,
            }
            limits = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return (" and ".join(limits) or "finite") + (", or inf" if self.infinity else "")


_RANGE = "range"


def number(default: Any, allowed: Range) -> Any:
    """A dataclass field for a numeric option, or for a list of numbers.

    Args:
        default: the value of an option that is not set; a list is copied.
        allowed: what the number, or every number of the list, must be.
    """
    metadata = {_RANGE: allowed}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Option(NamedTuple):
    """The values that an option may have, by its declaration."""

    hint: Any  # the option's type
    optional: bool  # whether null is a value
    range: Range | None  # the range of a number; None: the option takes no numbers


@cache
def options(section: type) -> dict[str, Option]:
    """The options of a section by name, without the sections in it.

    Raises:
        TypeError: a numeric option was declared without a range.
    """
    hints, declared = get_type_hints(section), {}
    for entry in fields(section):
        kinds = leaf_types(hints[entry.name])
        allowed = entry.metadata.get(_RANGE)
        if (float in kinds or int in kinds) != (allowed is not None):
            raise TypeError(
                f"{section.__name__}.{entry.name}: a Range is for numbers, which need it"
            )
        if not is_dataclass(hints[entry.name]):
            declared[entry.name] = Option(hints[entry.name], type(None) in kinds, allowed)
    return declared


def leaf_types(hint: Any) -> set[Any]:
    """The types in a type hint: those of a union's members and of a list's elements."""
    if get_origin(hint) in (Union, types.UnionType, list):
        return {leaf for part in get_args(hint) for leaf in leaf_types(part)}
    return {hint}


def sections(section: type) -> dict[str, type]:
    """The sections in a section, by name."""
    hints = get_type_hints(section)
    return {f.name: hints[f.name] for f in fields(section) if is_dataclass(hints[f.name])}


def all_options(section: type, prefix: str = "") -> dict[str, Option]:
    """The options of a section and of all sections in it, by their full names."""
    declared = {prefix + name: option for name, option in options(section).items()}
    for name, inner in sections(section).items():
        declared |= all_options(inner, f"{prefix}{name}.")
    return declared


@dataclass(kw_only=True)
class Section:
    """Base of all sections: a dataclass that refuses values that its options do not allow."""

    def __post_init__(self) -> None:
        for name, option in options(type(self)).items():
            value = getattr(self, name)
            require(value is not None or option.optional, name, describe_type(option.hint), value)
            numbers = value if isinstance(value, list) else [value]
            for element in numbers:
                if isinstance(element, int | float) and option.range is not None:
                    require(option.range.admits(element), name, str(option.range), value)
        self.check()

    def check(self) -> None:
        """Refuse values that do not fit together.

        Raises:
            OptionError: names the option.
        """


_DESCRIPTIONS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_LIST_DESCRIPTIONS = {float: "a list of numbers, as [1, 2]", str: "a list, as [a, b]"}


def describe_type(hint: Any) -> str:
    """A description of a type: what a value must be."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in get_args(hint))
    if origin is Literal:
        *names, last = map(str, get_args(hint))
        return f"{', '.join(names)} or {last}" if names else last
    if origin is list:
        element = get_args(hint)[0]
        if get_origin(element) is Literal:
            return f"a list of {describe_type(element)}, as [a, b]"
        return _LIST_DESCRIPTIONS[element]
    return "options and values, as {name: value}" if origin is dict else _DESCRIPTIONS[hint]


def choices(hint: Any) -> list[str]:
    """The names that a type allows."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType, list):
        return [word for part in get_args(hint) for word in choices(part)]
    return []
