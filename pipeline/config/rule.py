"""How an option is refused."""

from typing import Any


def require(condition: bool, option: str, rule: str, value: Any) -> None:
    """Refuse an option's value.

    Raises:
        ValueError: unless the condition holds; names the option and the rule.
    """
    if not condition:
        raise ValueError(f"{option} must be {rule}, got {value}")
