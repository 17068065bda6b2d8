"""`--help` of the entry points: a short page, the page of a section or an option, all options.

In: the dataclass of the options, and the parser that describes each option. Out: text.
"""

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from pipeline.config.checks import Option, all_options, choices, sections, shown
from pipeline.config.runs import EvaluateConfig, FinetuneConfig, RunConfig
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, is_first_process

SHORT, ALL = "", "all"  # pages; other pages are names of sections and options
_MAX_HELP = 150  # characters of an option's description on the short page
_SHARED: Mapping[str, str] = {
    "output": "FOLDER",
    "dry_run": "true",
    "model.name": "NET",
    "model.weights": "WEIGHTS",
}
# The options of the short page in order, with a word for the value; KIND stands for its choices.
_MOST_USED: Mapping[type[RunConfig], Mapping[str, str]] = {
    FinetuneConfig: {
        **_SHARED,
        "data.train": "INDEX",
        "data.val": "INDEX",
        "objective.method": "METHOD",
        "regularizer.gradient": "KIND",
        "regularizer.lam": "NUMBER",
        "regularizer.c": "NUMBER",
        "optim.lr": "NUMBER",
        "train.epochs": "EPOCHS",
        "train.batch_size": "IMAGES",
        "runtime.precision": "KIND",
    },
    EvaluateConfig: {
        **_SHARED,
        "data.val": "INDEX",
        "data.preprocessing": "KIND",
        "shard": "I/N",
        "evaluation.attack.method": "METHOD",
        "evaluation.attack.norm": "P",
        "evaluation.fgs.search": "true",
        "evaluation.space": "KIND",
        "evaluation.num_images": "IMAGES",
        "evaluation.batch_size": "IMAGES",
    },
}


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's formatter, which keeps the line breaks of the description."""


class OptionParser(ArgumentParser):
    """jsonargparse's parser, with ranges of numbers in ``--help`` and without its own options."""

    def describe(self, options: Mapping[str, Option]) -> None:
        """Append the ranges to the help texts; hide arguments that are not options of a run."""
        for action in self._actions:
            option = options.get(action.dest)
            if action.dest == "help":
                action.help = "the options most used; --help SECTION: a section's; --help-all: all"
            elif option is not None and option.range is not None:
                action.help = option.range.append_to(action.help or "")
            elif option is None and action.dest != "config":
                action.help = argparse.SUPPRESS  # whole sections, and jsonargparse's own

    def option_strings(self) -> set[str]:
        """All options, with their dashes."""
        return set(self._option_string_actions)

    def help_texts(self) -> dict[str, str]:
        """The description of each option by its name."""
        return {action.dest: action.help or "" for action in self._actions}

    def hide_others(self, page: str) -> bool:
        """Hide all options but those of a section, or one option; False if there are none."""
        for action in self._actions:
            if not f"{action.dest}.".startswith(f"{page}."):
                action.help = argparse.SUPPRESS
        return any(action.help != argparse.SUPPRESS for action in self._actions)


def requested_page(argv: Sequence[str]) -> str | None:
    """The page that a command line requests; None if it requests none.

    ``--help`` and ``-h`` request the short page, or the page that the next word names unless that
    word is an option; ``--help-all`` requests all options.
    """
    for position, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else "-"
        if name == "--help-all":
            return ALL
        if name in ("-h", "--help"):
            return value or ("" if following.startswith("-") else following)
    return None


def show(cls: type[RunConfig], parser: OptionParser, description: str | None, page: str) -> None:
    """Print a page on rank 0 and exit.

    Args:
        cls: the options.
        parser: a parser of all options, which this function changes.
        description: what the program does, with examples.
        page: the result of `requested_page`.

    Raises:
        SystemExit: with code 0.
        UserError: there is no such section or option.
    """
    if page == SHORT:
        text = _short_page(cls, parser, description)
    else:
        parser.description = description if page == ALL else None
        if page != ALL and not parser.hide_others(page):
            names = list(sections(cls))
            options = list(all_options(cls))
            inner = dict.fromkeys(option.rpartition(".")[0] for option in options)
            hint = did_you_mean(page, [*names, ALL, *inner, *options])
            raise UserError(f"--help {page}: the sections are {', '.join(names)}{hint}")
        text = parser.format_help()
    if is_first_process():
        print(text, end="", flush=True)
    raise SystemExit(0)


def _short_page(cls: type[RunConfig], parser: OptionParser, description: str | None) -> str:
    """What the program does, the options most used, and the sections of the others."""
    page = argparse.ArgumentParser(
        prog=parser.prog,
        usage=parser.usage,
        description=description,
        epilog=f"--help SECTION describes the options of a section, --help OPTION one option, "
        f"--help-all all\n{len(all_options(cls))} options, each with its unit, range and default.",
        formatter_class=_ShortFormatter,
        add_help=False,
    )
    help_texts = parser.help_texts()
    group = page.add_argument_group("the options most used")
    group.add_argument("--config", metavar="FILE", help=help_texts["config"])
    defaults = cls()
    for name, metavar in _MOST_USED[cls].items():
        kinds = choices(all_options(cls)[name].hint) if metavar == "KIND" else []
        metavar = f"{{{','.join(kinds)}}}" if kinds else metavar
        text = _shortened(help_texts[name]) + _default(defaults, name)
        group.add_argument(f"--{name}", metavar=metavar, help=text.replace("%", "%%"))
    listing = page.add_argument_group("the sections of options")
    for name, section in sections(cls).items():
        listing.add_argument(name, help=_summary(section.__doc__ or ""))
    top_level = [f.name for f in fields(cls) if f.name not in sections(cls)]
    listing.add_argument("(no section)", help=", ".join(top_level))
    return page.format_help()


class _ShortFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions in a column beside the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def _shortened(text: str) -> str:
    """The first sentence of an option's description, without its range."""
    text = re.sub(r" \[range: .*\]$", "", " ".join(text.split()))
    sentence = re.split(r"(?<=[^.])\. ", text)[0].removesuffix(".")
    return textwrap.shorten(sentence, _MAX_HELP, placeholder=" ...")


def _summary(docstring: str) -> str:
    """The first clause of a section's description."""
    return re.split(r"[.:] ", " ".join(docstring.split()) + " ")[0]


def _default(config: Any, name: str) -> str:
    value = reduce(getattr, name.split("."), config)
    return "" if value is None else f" (default: {shown(value)})"
