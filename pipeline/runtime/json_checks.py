"""Checks of values that were read from a file and may be damaged."""

from collections.abc import Mapping
from typing import Any

Kinds = Mapping[str, tuple[type, ...]]
NUMBER, WHOLE_NUMBER, TEXT = (int, float), (int,), (str,)
LIST, OBJECT, NOTHING = (list,), (dict,), (type(None),)


def schema_problem(values: Any, kinds: Kinds) -> str:
    """The first key that is missing or has a value of another type.

    Args:
        values: the content of the file.
        kinds: the types that each key's value may have; True and False are not numbers.

    Returns:
        A phrase to follow the file's name; empty if nothing is wrong.
    """
    if not isinstance(values, dict):
        return "contains no JSON object"
    for name, kind in kinds.items():
        if name not in values:
            return f"lacks {name}"
        value = values[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            return f"has another kind of value for {name}"
    return ""


def check_object(values: Any, kinds: Kinds) -> dict[str, Any]:
    """Refuse an object that lacks a key, has a value of another type, or has unknown keys.

    Returns:
        The values, for the constructor of the record that they are of.

    Raises:
        ValueError: a phrase to follow the file's name.
    """
    problem = schema_problem(values, kinds)
    if problem:
        raise ValueError(problem)
    unknown = sorted(values.keys() - kinds.keys())
    if unknown:
        raise ValueError(f"has the unknown key {unknown[0]}")
    return values
