"""The command lines of the launchers, checked before the slow import of torch.

In: the words of a command line. Out: the parser of the words before ``--``; for the words after it,
the help and the refusals of the entry points.
"""

from collections.abc import Sequence

from launchers import options
from pipeline.config import RunConfig, parse
from pipeline.config.aliases import translate_argv, translate_launcher_argv
from pipeline.config.arguments import POSITIVE, Parser
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, exit_on_user_error


def finetune_parser(description: str | None) -> Parser:
    """The options of launchers/finetune.py before ``--``."""
    top = _launcher_parser(description, "pipeline/finetune.py")
    top.add_argument(
        "--sweep",
        action="append",
        nargs="+",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="an option of pipeline/finetune.py and the values to try; may be given several times, "
        "then every combination is run (default: no sweep)",
    )
    options.add_resources(top)
    return top


def evaluate_parser(description: str | None) -> Parser:
    """The options of launchers/evaluate.py before ``--``."""
    top = _launcher_parser(description, "pipeline/evaluate.py")
    top.add_argument(
        "--shards",
        type=POSITIVE,
        help="number of jobs in the array (default: 8, or 1 without SLURM; never more than images)",
    )
    options.add_resources(top)
    return top


def chain_parser(description: str | None) -> Parser:
    """The options of launchers/chain.py before the first ``--``."""
    top = _launcher_parser(
        description, "pipeline/finetune.py", "[-- OPTIONS OF pipeline/evaluate.py]"
    )
    top.add_argument(
        "--shards",
        type=POSITIVE,
        help="number of jobs of each evaluation (default: 8, or 1 without SLURM; never more than "
        "images)",
    )
    top.add_argument(
        "--shard-time",
        type=options.parse_minutes,
        default=240,
        metavar="TIME",
        help="time limit of each shard, written as for --time (default: 4h). A shard has one "
        "task, with one GPU if --gpus-per-node is given",
    )
    options.add_resources(top)
    return top


def _launcher_parser(description: str | None, program: str, *more_usage: str) -> Parser:
    """A parser whose help says that the options of an entry point follow ``--``."""
    return Parser(
        description=description,
        usage=" ".join([f"%(prog)s [OPTIONS] -- [OPTIONS OF {program}]", *more_usage]),
        epilog=f"The options of {program} follow --. After --, --help shows those most used,\n"
        "--help SECTION those of a section, --help-all all of them.",
    )


def check(parser: Parser, argv: Sequence[str], *entry_points: type[RunConfig]) -> None:
    """Show the help that is requested; refuse unknown options and a missing ``--``.

    Args:
        parser: of the options before ``--``.
        argv: the launcher's command line.
        entry_points: the configuration classes whose options follow the first ``--``, the second
            ``--``, and so on.

    Raises:
        SystemExit: with code 0 after a page of help; with code 2 after a mistake, in one line.
    """
    launcher_argv, *rest = options.split(list(argv))
    if not {"-h", "--help"}.isdisjoint(launcher_argv):
        parser.parse_args(["--help"])
    with exit_on_user_error():
        _check_own_names(parser, launcher_argv, entry_points[0])
        for entry_point in entry_points:
            run_argv, *rest = options.split(rest[0]) if rest else [[]]
            parse.show_help(entry_point, None, run_argv)
            parse.check_names(entry_point, run_argv)


def _check_own_names(parser: Parser, argv: Sequence[str], entry_point: type[RunConfig]) -> None:
    """Refuse unknown options before ``--``.

    Raises:
        UserError: names the nearest option, or says that an option belongs after ``--``.
    """
    names, program = parser.long_names(), parse.PROGRAMS[entry_point]
    inner = {*parse.option_names(entry_point), "config"}
    for word in parser.with_hyphens(translate_launcher_argv(argv).values):
        name = word.partition("=")[0].removeprefix("--")
        if not word.startswith("--") or name in names:
            continue
        if translate_argv(entry_point, [f"--{name}"]).values[0].removeprefix("--") in inner:
            raise UserError(f"--{name} belongs to {program}: put it after --, as -- --{name} ...")
        hint = did_you_mean(name, names, prefix="--")
        raise UserError(f"no option --{name}{hint or '; --help lists all'}")
