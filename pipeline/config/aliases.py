"""Earlier spellings of options, still read in YAML files, on command lines and in stored runs.

`ALIASES` is the only table of them. An entry belongs to a dataclass, so it holds wherever that
dataclass is a section: ``AttackConfig`` is evaluation.attack and regularizer.attack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import yaml

from pipeline.config.checks import sections
from pipeline.config.text import parse_yaml
from pipeline.errors import UserError, warn


@dataclass(frozen=True)
class Alias:
    """An option that was renamed, or whose values were."""

    section: str  # name of the dataclass
    old: str
    new: str  # may be equal to `old`
    values: Mapping[str, str] = field(default_factory=dict)  # earlier value: value now


ALIASES = (
    Alias("AttackConfig", "classes", "target_class", {"every": "reselect", "first": "fixed"}),
    Alias("AttackConfig", "visit", "candidate_search", {"all": "exhaustive", "lazy": "pruned"}),
    Alias("AttackConfig", "safety", "pruning_factor"),
    Alias(
        "AttackConfig", "linearize_at", "linearize_at", {"reached": "current", "tested": "overshot"}
    ),
    Alias(
        "AttackConfig",
        "direction",
        "step_direction",
        {"normal": "boundary", "loss": "loss_gradient"},
    ),
    Alias("DataConfig", "area", "crop_scale"),
    Alias("DataConfig", "aspect", "crop_ratio"),
    Alias("DataConfig", "crop", "crop_size"),
    Alias("DataConfig", "resize", "resize_size"),
    Alias("DataConfig", "flip", "hflip"),
    Alias("DataConfig", "threads", "num_threads"),
    Alias("OptimConfig", "clip_norm", "max_grad_norm"),
    Alias("TrainConfig", "accumulation", "gradient_accumulation_steps"),
    Alias("TrainConfig", "clean_epochs", "pretrain_epochs"),
    Alias("TrainConfig", "clean_lr", "pretrain_lr"),
    Alias("CheckpointConfig", "keep", "keep_last"),
    Alias("RuntimeConfig", "timeout", "collective_timeout"),
)
LAUNCHER_ALIASES = {"--grace": "--signal-before", "--at-once": "--max-parallel"}


class Translated(NamedTuple):
    """Options in today's spelling."""

    values: Any  # nested dictionaries, or the arguments of a command line
    notes: list[str]  # a phrase for each earlier spelling: OLD is now NEW


def translate(section: type, values: Any, prefix: str = "") -> Translated:
    """Translate nested values of a section, from a YAML file or a stored run.

    Args:
        section: the dataclass.
        values: the values; unknown keys, and values that are not dictionaries, are not changed.
        prefix: put before the names in the notes.

    Raises:
        UserError: a section contains an option under both names.
    """
    if not isinstance(values, dict):
        return Translated(values, [])
    inner, aliases = sections(section), _aliases(section)
    result, notes = {}, []
    for key, value in values.items():
        alias = aliases.get(key)
        if key in inner:
            result[key], inner_notes = translate(inner[key], value, f"{prefix}{key}.")
            notes += inner_notes
        elif alias is None:
            result[key] = value
        elif key != alias.new and alias.new in values:
            old, new = f"{prefix}{key}", f"{prefix}{alias.new}"
            raise UserError(f"{old} is the earlier name of {new}; give one of them")
        else:
            result[alias.new] = _new_value(alias, value)
            notes += _note(prefix, key, value, alias)
    return Translated(result, notes)


def translate_argv(section: type, argv: Sequence[str]) -> Translated:
    """Translate a command line with the options of a section, such as --data.flip true."""
    argv, notes = list(argv), []
    aliases, inner = _aliases_by_path(section), _sections_by_path(section)
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if not equals:
            value = next(iter(argv[position + 1 : position + 2]), "")
        path = name.removeprefix("--").removesuffix("+")
        if not name.startswith("--") or (path not in aliases and path not in inner):
            continue
        new_name = name
        if path in inner:  # a whole section, such as --data '{flip: true}'
            new_value, new_notes = _translate_text(inner[path], value, f"{path}.")
        else:
            alias, prefix = aliases[path], f"--{path.rpartition('.')[0]}."
            new_value, new_notes = _new_value(alias, value), _note(prefix, path, value, alias)
            new_name = f"{prefix}{alias.new}{'+' * name.endswith('+')}"
        notes += new_notes
        argv[position] = f"{new_name}={new_value}" if equals else new_name
        if not equals and value:
            argv[position + 1] = new_value
    return Translated(argv, notes)


def translate_launcher_argv(argv: Sequence[str]) -> Translated:
    """Translate a launcher's command line before ``--``."""
    result, notes = [], []
    for argument in argv:
        name, equals, value = argument.partition("=")
        new_name = LAUNCHER_ALIASES.get(name, name)
        result.append(f"{new_name}{equals}{value}")
        notes += [f"{name} is now {new_name}"] * (new_name != name)
    return Translated(result, notes)


_printed: set[tuple[str, str]] = set()  # a process parses its command line more than once


def warn_of_aliases(source: str, notes: Sequence[str]) -> None:
    """Print one warning for all earlier spellings of a file or a command line, without those that
    this process has printed before.

    Args:
        source: put before the notes, such as ``FILE: ``.
        notes: the notes of `Translated`.
    """
    new_notes = [note for note in notes if (source, note) not in _printed]
    if new_notes:
        warn(f"{source}{'; '.join(new_notes)}")
    _printed.update((source, note) for note in new_notes)


def _translate_text(section: type, text: str, prefix: str) -> tuple[str, list[str]]:
    """Translate a section that is one argument of a command line."""
    try:
        values, notes = translate(section, parse_yaml(text), prefix)
    except yaml.YAMLError:
        return text, []  # reported where it is parsed
    dumped = yaml.safe_dump(values, default_flow_style=True, width=float("inf")).strip()
    return (dumped, notes) if notes else (text, [])


def _new_value(alias: Alias, value: Any) -> Any:
    return alias.values.get(value, value) if isinstance(value, str) else value


def _note(prefix: str, old_name: str, value: Any, alias: Alias) -> list[str]:
    """A list with one phrase about the change; empty if nothing changed."""
    old, new = f"{prefix}{old_name.rpartition('.')[2]}", f"{prefix}{alias.new}"
    new_value = _new_value(alias, value)
    if new_value != value:
        return [f"{old} {value} is now {new} {new_value}"]
    return [f"{old} is now {new}"] if old != new else []


@cache
def _aliases(section: type) -> dict[str, Alias]:
    """The aliases of a section, by the earlier name and by the new one."""
    own = [alias for alias in ALIASES if alias.section == section.__name__]
    return {name: alias for alias in own for name in (alias.old, alias.new)}


def _aliases_by_path(section: type) -> dict[str, Alias]:
    """The aliases of a section and of the sections in it, by section.option."""
    everywhere = {"": section} | _sections_by_path(section)
    return {
        f"{path}.{name}".removeprefix("."): alias
        for path, inner in everywhere.items()
        for name, alias in _aliases(inner).items()
    }


def _sections_by_path(section: type, prefix: str = "") -> dict[str, type]:
    by_path = {}
    for name, inner in sections(section).items():
        by_path |= {f"{prefix}{name}": inner} | _sections_by_path(inner, f"{prefix}{name}.")
    return by_path


def earlier_values(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored run did by options that its version did not have, where that is not what their
    defaults do.

    Args:
        stored: its options by their present names, such as evaluation.fgs.search.
    """
    fgs = (f"evaluation.fgs.{name}" for name in ("search", "eps", "reference"))
    is_used = {
        "evaluation.fgs.direction": any(stored.get(name) for name in fgs),
        "objective.adversarial.direction": "adversarial_2" in str(stored.get("objective.method")),
    }
    return {name: "rounded" for name, used in is_used.items() if used}
