"""Where the values of options are from: the command line, a YAML file, or neither."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.text import flatten, parse_yaml


def origin(option: str, argv: Sequence[str], files: dict[Path, dict[str, Any]]) -> str:
    """The YAML file that an option's value is from, as a prefix of a message.

    Args:
        option: its full name, as section.option.
        argv: the command line, in present names.
        files: the options in each YAML file, in the order of the command line.
    """
    names = _names(argv)
    if any(option == name or option.startswith(f"{name}.") for name in names):
        return ""
    return next((f"{path}: " for path, v in reversed(files.items()) if option in flatten(v)), "")


def explicit_options(
    section: str, argv: Sequence[str], files: dict[Path, dict[str, Any]]
) -> frozenset[str]:
    """The options of a section that a YAML file or the command line sets, without its name.

    Args:
        section: name of the section.
        argv: as for `origin`.
        files: as for `origin`.
    """
    names = _names(argv).union(*map(flatten, files.values()))
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == f"--{section}":  # the whole section, as {option: value}
            values = parse_yaml(value if equals else following)
            names |= flatten({section: values}).keys()
    prefix = f"{section}."
    return frozenset(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _names(argv: Sequence[str]) -> set[str]:
    """The options on a command line; values are among them, which does no harm."""
    return {word.partition("=")[0].removeprefix("--").rstrip("+") for word in argv}
