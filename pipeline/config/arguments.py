"""Command lines of the launchers and tools, by argparse, with one line for each mistake."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.config.aliases import (
    LAUNCHER_ALIASES,
    translate_launcher_argv,
    warn_of_aliases,
)
from pipeline.config.checks import Range
from pipeline.config.text import did_you_mean
from pipeline.errors import exit_with_error

_RULES = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Number:
    """The ``type`` of an argument that takes a number in a range."""

    kind: type[int] | type[float]
    range: Range

    def __call__(self, text: str) -> int | float:
        """Parse an argument of the command line.

        Raises:
            ArgumentTypeError: it is not a number, or is out of range.
        """
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {_RULES[self.kind]}, got {text}") from None
        if not self.range.admits(value):
            raise argparse.ArgumentTypeError(f"must be {self.range}, got {text}")
        return value


POSITIVE = Number(int, Range(minimum=1))
SEED = Number(int, Range(minimum=0, maximum=2**63 - 1))


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations. It reports a mistake in one line, with the nearest option."""

    def __init__(self, **settings: Any) -> None:
        """Create a parser that keeps the line breaks of the description."""
        self._commands: Mapping[str, Parser] = {}
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "formatter_class": formatter} | settings)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument; the help of a `Number` ends with its range."""
        kind = settings.get("type")
        if isinstance(kind, Number):
            settings["help"] = kind.range.append_to(settings.get("help", ""))
        return super().add_argument(*names, **settings)

    def add_subparsers(self, **settings: Any) -> Any:
        """Add subcommands, whose options `long_names` includes."""
        action = super().add_subparsers(**settings)
        self._commands = action.choices
        return action

    # One signature for the three overloads of argparse's.
    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse a command line. An unknown option is reported with the nearest known one; earlier
        names of launchers' options are read with a warning, and _ in an option as -."""
        argv = list(sys.argv[1:] if args is None else args)
        if not self._option_string_actions.keys().isdisjoint(LAUNCHER_ALIASES.values()):
            argv, notes = translate_launcher_argv(argv)
            warn_of_aliases("", notes)
        argv = self.with_hyphens(argv)
        # Before argparse, which reports missing options first.
        self._check_names([word for word in argv if word.startswith("--")], argv)
        parsed, unknown = self.parse_known_args(argv, namespace)
        self._check_names([word for word in unknown if word.startswith("-")], argv)
        if unknown:
            self.error(f"{unknown[0]}: one word too many; --help shows the usage")
        return parsed

    def with_hyphens(self, argv: list[str]) -> list[str]:
        """The command line with options such as --dry_run, as those of pipeline/ are written, in
        the spelling --dry-run."""
        names = {f"--{name}" for name in self.long_names()}
        end = argv.index("--") if "--" in argv else len(argv)
        words = []
        for word in argv[:end]:
            name, equals, value = word.partition("=")
            hyphenated = name.replace("_", "-")
            is_known = name.startswith("--") and name not in names and hyphenated in names
            words.append(f"{hyphenated}{equals}{value}" if is_known else word)
        return words + argv[end:]

    def _check_names(self, options: Sequence[str], argv: Sequence[str]) -> None:
        """Refuse unknown options, with the nearest one of the subcommand that ``argv`` names."""
        commands = [word for word in argv if word in self._commands]
        names = self.long_names(*commands[:1])
        for option in options:
            name = option.partition("=")[0]
            if option == "--":
                break  # the words after it are no options
            if not name.startswith("--") or name.removeprefix("--") not in names:
                hint = did_you_mean(name.lstrip("-"), names, prefix="--")
                self.error(f"no option {name}{hint or '; --help lists all'}")

    def long_names(self, command: str | None = None) -> list[str]:
        """The options' names without dashes, including those of one subcommand, or of all."""
        names = [n.removeprefix("--") for n in self._option_string_actions if n.startswith("--")]
        for name, parser in self._commands.items():
            if command in (None, name):
                names += parser.long_names()
        return names

    def error(self, message: str) -> NoReturn:
        """Print a mistake as one line and exit with code 2."""
        message = re.sub(r"^argument ([^:]*): (must be .*)", r"\1 \2", message)
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            names = [name.strip("'") for name in choice[2].split(", ")]
            hint = did_you_mean(choice[1], names)
            # A subcommand has no name but the list of them.
            argument = "" if " | " in message[: choice.start()] else message[: choice.start()]
            message = f"{argument}no {choice[1]}; use {', '.join(names)}{hint}"
        if "are required" in message:
            message += "; --help shows the usage"
        exit_with_error(message.removeprefix("argument "))
