"""Checks of values that were read from a file and may be damaged."""

from collections.abc import Mapping
from typing import Any

Kinds = Mapping[str, tuple[type, ...]]
NUMBER, WHOLE_NUMBER, TEXT = (int, float), (int,), (str,)
LIST, OBJECT, NOTHING = (list,), (dict,), (type(None),)


def lacking(values: Any, kinds: Kinds) -> str:
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
