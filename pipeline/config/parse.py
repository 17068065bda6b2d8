"""Command line and YAML for the dataclasses of `pipeline.config`, by jsonargparse.

A mistake is reported in one line: the option with its sections, its rule, the value, and the YAML
file if the value comes from one.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, set_loader, set_parsing_settings

from pipeline.config import (
    CONFIGS,
    DEFAULT_CONFIG,
    EvaluateConfig,
    FinetuneConfig,
    RunConfig,
    help_pages,
)
from pipeline.config.aliases import earlier_values, translate, translate_argv, warn_of_aliases
from pipeline.config.checks import OptionError, all_options, choices, describe_type, sections
from pipeline.config.help_pages import HelpFormatter, OptionParser
from pipeline.config.origin import explicit_options, origin
from pipeline.config.text import did_you_mean, flatten, parse_yaml, read_yaml
from pipeline.errors import UserError, exit_on_user_error

ConfigT = TypeVar("ConfigT", bound=RunConfig)

PROGRAMS = {FinetuneConfig: "pipeline/finetune.py", EvaluateConfig: "pipeline/evaluate.py"}
_CONFIG = "--config"
_YAML_SPELLINGS = {"None": "null", "True": "true", "False": "false"}


def parse(
    cls: type[ConfigT],
    description: str | None,
    argv: Sequence[str] | None = None,
    output_suffix: str = "",
) -> ConfigT:
    """Read options from a YAML file (``--config``) and the command line, which takes precedence.

    Without ``--config``, ``--data.train`` and ``--data.val``, the configuration is the embedded
    demonstration, configs/demo.yaml. With data but without ``--config``, the defaults are used,
    which are those of torchvision's nets for ImageNet. A mistake prints one line on rank 0 and
    exits with code 2.

    Args:
        cls: the options.
        description: shown by ``--help``; see `pipeline.config.help_pages`.
        argv: arguments of the command line; by default those of this process.
        output_suffix: added to the YAML file's name for the default of ``--output``.
    """
    argv = sys.argv[1:] if argv is None else argv
    show_help(cls, description, argv)
    parser = _parser(cls)
    with exit_on_user_error():
        arguments = _read_argv(cls, argv)
        files = {path: _read_file(cls, path) for path in _config_files(arguments)}
        try:
            config = _construct(cls, parser.parse_args(arguments))
        except OptionError as error:
            raise UserError(origin(error.option, arguments, files) + str(error)) from None
        except (ArgumentError, ValueError, TypeError, OverflowError) as error:
            raise UserError(_explain(cls, error)) from None
    config.data.explicit = explicit_options("data", arguments, files)
    if config.output is None:
        name = list(files)[-1].stem if files else config.model.name.replace(":", "-")
        config.output = str(Path("runs") / (name + output_suffix))
    return config


def show_help(cls: type[RunConfig], description: str | None, argv: Sequence[str]) -> None:
    """Print the page of help that a command line requests, and exit; else do nothing.

    The arguments are those of `parse`.

    Raises:
        SystemExit: with code 0; with code 2 if there is no such page.
    """
    page = help_pages.requested_page(argv)
    if page is not None:
        with exit_on_user_error():
            help_pages.show(cls, _make_parser(cls), description, page)


def _read_argv(cls: type[RunConfig], argv: Sequence[str]) -> list[str]:
    """A command line in today's spelling, with ``--config configs/demo.yaml`` if it is the default.

    Raises:
        UserError: a name is not an option.
    """
    arguments, notes = translate_argv(cls, argv)
    warn_of_aliases("", notes)
    check_names(cls, arguments)
    names = {word.partition("=")[0] for word in arguments}
    if names.isdisjoint({_CONFIG, "--data.train", "--data.val"}):
        return [_CONFIG, str(DEFAULT_CONFIG), *arguments]
    return arguments


@cache
def _parser(cls: type[RunConfig]) -> OptionParser:
    return _make_parser(cls)


def _make_parser(cls: type[RunConfig]) -> OptionParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    others = _sections_of_others(cls)

    def load(text: str) -> Any:
        values = parse_yaml(text)
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key not in others}
        return translate(cls, values).values

    set_loader(cls.__name__, load, exceptions=(yaml.YAMLError,))
    parser = OptionParser(
        usage="%(prog)s [--config FILE] [--section.option VALUE ...]",
        parser_mode=cls.__name__,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(_CONFIG, action="config", help="YAML file of an experiment; see configs/.")
    parser.add_class_arguments(cls)
    parser.describe(all_options(cls))
    return parser


def option_names(cls: type[RunConfig]) -> set[str]:
    """The options of an entry point, as section.option."""
    return set(all_options(cls))


def _sections_of_others(cls: type[RunConfig]) -> set[str]:
    """The top-level names that only the other entry point has."""
    both = {f.name for other in PROGRAMS for f in dataclasses.fields(other)}
    return both - {f.name for f in dataclasses.fields(cls)}


def check_names(cls: type[RunConfig], argv: Sequence[str]) -> None:
    """Refuse unknown options.

    Raises:
        UserError: names the nearest options.
    """
    valid_names = _parser(cls).option_strings()
    mappings = tuple(f"--{n}." for n, o in all_options(cls).items() if "dict" in str(o.hint))
    for argument in translate_argv(cls, argv).values:
        name = argument.partition("=")[0]
        is_valid = name.removesuffix("+") in valid_names or name.startswith(mappings)
        if is_valid or not argument.startswith("--"):
            continue
        if name == "--":
            raise UserError("-- separates the options of a launcher; leave it out here")
        for other, program in PROGRAMS.items():
            if translate_argv(other, [name]).values[0].removeprefix("--") in option_names(other):
                raise UserError(f"no option {name} here; it is one of {program}")
        names = sorted({*option_names(cls), "config", "help", "help-all"})
        hint = did_you_mean(name.removeprefix("--"), names, prefix="--")
        raise UserError(f"no option {name}{hint or '; --help-all lists all'}")


def _config_files(argv: Sequence[str]) -> list[Path]:
    """The values of ``--config``, in their order."""
    files = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == _CONFIG and (equals or following):
            files.append(Path(value if equals else following))
    return files


def _read_file(cls: type[RunConfig], path: Path) -> dict[str, Any]:
    """The options in a YAML file, under their present names.

    Raises:
        UserError: a key is not an option, or a value is of a wrong type; names the file and the
            key.
    """
    values, others = read_yaml(path, [CONFIGS]), _sections_of_others(cls)
    try:
        used = {key: value for key, value in values.items() if key not in others}
        used, notes = translate(cls, used)
        warn_of_aliases(f"{path}: ", notes)
        _check_keys(cls, used, sorted(all_options(cls)))
        _parser(cls).parse_object(used)
    except (ArgumentError, ValueError, TypeError, OverflowError, UserError) as error:
        raise UserError(f"{path}: {_explain(cls, error)}") from None
    return used


def _check_keys(
    section: type, values: dict[str, Any], all_names: Sequence[str], prefix: str = ""
) -> None:
    inner = sections(section)
    names = sorted(f.name for f in dataclasses.fields(section))
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in names:
            hint = did_you_mean(str(key), names, prefix) or did_you_mean(name, all_names)
            raise UserError(f"no option {name}{hint}")
        if key in inner:
            if not isinstance(value, dict):
                inside = ", ".join(f.name for f in dataclasses.fields(inner[key]))
                raise UserError(f"{name} must be a section of options ({inside}), got {value}")
            _check_keys(inner[key], value, all_names, f"{name}.")
        elif value is None and not all_options(section)[key].optional:
            raise OptionError(name, describe_type(all_options(section)[key].hint), None)


def _explain(cls: type[RunConfig], error: Exception) -> str:
    """An error of jsonargparse as one line that names the option and its rule."""
    if isinstance(error, OverflowError):
        return f"a number is too large: {error}"
    text = " ".join(str(error).split())
    option = re.search(r'Parser key "([\w.]+)":', text)
    value = re.search(r"(?:Got value|Given value):(.*)", text)
    declared = all_options(cls).get(option[1]) if option else None
    if option and declared is not None and value is not None:
        text = _YAML_SPELLINGS.get(value[1].strip(), value[1].strip() or "nothing")
        names = choices(declared.hint)
        hint = "" if text in names else did_you_mean(text, names)
        return str(OptionError(option[1], describe_type(declared.hint), text, hint))
    if option and option[1] not in all_options(cls):
        name = option[1]
        return f"--{name} is a section of options, as --{name}.NAME; --help {name} lists them"
    inner = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if inner:
        name = f"{inner[1]}.{inner[2]}"
        return f"no option {name}{did_you_mean(name, all_options(cls))}"
    text = re.sub(r"^argument (--\S+): expected one argument$", r"\1 needs a value", text)
    return re.sub(r"^unrecognized arguments: (.*)", r"\1: options begin with --", text)


def _construct(cls: type, values: Any) -> Any:
    """A dataclass from nested values; the errors of its sections name the whole option."""
    hints = get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        arguments[field.name] = values[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            try:
                arguments[field.name] = _construct(hints[field.name], values[field.name])
            except OptionError as error:
                raise error.within(field.name) from None
    return cls(**arguments)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries."""
    return dataclasses.asdict(config)


def stored_differences(stored: Any, config: RunConfig, free: Sequence[str]) -> list[str]:
    """`differences` between the options that a run stored and those of ``config``. The stored ones
    may have earlier names."""
    # Options that the version of the stored run did not have yet: their defaults do what it did,
    # with few exceptions.
    defaults = flatten(to_dict(type(config)()))
    values = flatten(translate(type(config), stored).values)
    before = {**defaults, **earlier_values(values), **values}
    return differences(before, to_dict(config), free)


def differences(old: dict[str, Any], new: dict[str, Any], free: Sequence[str]) -> list[str]:
    """Options that differ, as ``section.option: old -> new``, without options and sections that
    ``free`` lists."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not any(name == path or name.startswith(path + ".") for path in free)
    ]
