"""Command line and YAML for the dataclasses of `pipeline.config`, by jsonargparse."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from pipeline.atomic import replacing
from pipeline.config import DEFAULT_CONFIG, EvaluateConfig, FinetuneConfig, RunConfig
from pipeline.errors import refuse

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def parse(
    cls: type[ConfigT],
    description: str,
    argv: Sequence[str] | None = None,
    output_suffix: str = "",
) -> ConfigT:
    """Read options from a YAML file (``--config``) and the command line, which wins.

    Without ``--config`` and without data of one's own the embedded demonstration,
    configs/demo.yaml, is the base; with data, the defaults, which are those of torchvision's nets
    for ImageNet. A mistake prints one line on rank 0 and exits with code 2.

    Args:
        cls: the options.
        description: shown by ``--help``.
        argv: words of the command line; by default those of this process.
        output_suffix: added to the YAML file's name for the default of ``--output``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(cls, description)
    given = {word.partition("=")[0] for word in argv}
    if given.isdisjoint({"--config", "--data.train", "--data.val"}):
        argv = ["--config", str(DEFAULT_CONFIG), *argv]
    try:
        namespace = parser.parse_args(argv)
        values = parser.instantiate(namespace)
        files = namespace.config or []
        config = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
    except (ArgumentError, ValueError, TypeError) as error:
        refuse(" ".join(str(error).split()))
    if config.output is None:
        name = Path(str(files[-1])).stem if files else config.model.name.replace(":", "-")
        config.output = str(Path("runs") / (name + output_suffix))
    return config


def _parser(cls: type[RunConfig], description: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    own = {f.name for f in dataclasses.fields(cls)}
    both = (*dataclasses.fields(FinetuneConfig), *dataclasses.fields(EvaluateConfig))
    others = {f.name for f in both} - own

    def load(text: str) -> Any:
        values = yaml.safe_load(text)
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key not in others}
        return values

    set_loader("experiment", load, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(
        description=description, parser_mode="experiment", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of an experiment; see configs/."
    )
    parser.add_class_arguments(cls)
    return parser


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries."""
    return dataclasses.asdict(config)


def save(config: Any, path: Path) -> None:
    """Write the merged configuration as YAML that ``--config`` reads back."""
    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with ``section.option`` for keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        flat |= flatten(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any], free: Sequence[str]) -> list[str]:
    """Options that differ, as ``section.option: old -> new``; those under ``free`` may."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not any(name == path or name.startswith(path + ".") for path in free)
    ]
