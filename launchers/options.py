"""Options that all launchers have: the cluster, and what to ask it for.

In: the command line, up to ``--``. Out: `Resources`, and the words after ``--``, which are the
options of the entry point.
"""

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.config import RunConfig, parse
from pipeline.config.aliases import translate_argv, translate_launcher_argv
from pipeline.config.arguments import POSITIVE, Number, Parser
from pipeline.config.checks import Range
from pipeline.config.text import did_you_mean
from pipeline.errors import UserError, exit_on_user_error


@dataclass(frozen=True)
class Resources:
    """What a job asks for. None leaves it to the cluster's default."""

    cluster: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int | None
    cpus_per_task: int | None
    mem_gb: float | None
    minutes: int
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    signal_before: int
    max_parallel: int

    @property
    def ranks(self) -> int:
        """Tasks in all."""
        return self.nodes * self.tasks_per_node

    def single_task(self) -> "Resources":
        """For a short job of one task without a GPU, in the same place."""
        return replace(self, nodes=1, tasks_per_node=1, gpus_per_node=None, minutes=30)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's words, and those after the first ``--``."""
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def check_names(argv: list[str], own: Sequence[str], *entry_points: type[RunConfig]) -> None:
    """Refuse unknown options and a forgotten ``--``, by one line and exit code 2.

    Args:
        argv: the launcher's command line.
        own: the launcher's options, without dashes, besides those that all launchers have.
        entry_points: whose options follow the first ``--``, the second, ...
    """
    common = Parser()
    add_resources(common)
    names = [*own, *common.long_names()]
    program = parse.PROGRAMS[entry_points[0]]
    inner = {*parse.option_names(entry_points[0]), "config"}
    launcher_words, *rest = split(argv)
    with exit_on_user_error():
        for word in translate_launcher_argv(launcher_words).values:
            name = word.partition("=")[0].removeprefix("--")
            if not word.startswith("--") or name in names:
                continue
            if translate_argv(entry_points[0], [f"--{name}"]).values[0].removeprefix("--") in inner:
                raise UserError(
                    f"--{name} belongs to {program}: put it after --, as -- --{name} ..."
                )
            hint = did_you_mean(name, names, prefix="--")
            raise UserError(f"no option --{name}{hint or '; --help lists all'}")
        for entry_point in entry_points:
            words, *rest = split(rest[0]) if rest else [[]]
            parse.check_names(entry_point, words)


def add_resources(parser: Parser) -> None:
    """The options of `Resources`."""
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="slurm; local: processes of this machine, in the background; debug: this process "
        "(%(default)s)",
    )
    parser.add_argument("--nodes", type=POSITIVE, default=1, help="(%(default)s)")
    parser.add_argument("--gpus-per-node", type=POSITIVE, help="and as many tasks, one a GPU")
    parser.add_argument(
        "--tasks-per-node", type=POSITIVE, help="ranks a node (default: as GPUs, else 1)"
    )
    parser.add_argument("--cpus-per-task", type=POSITIVE, help="cores of a rank")
    parser.add_argument(
        "--mem-gb", type=Number(float, Range(above=0, unit="GB")), help="memory of a node"
    )
    parser.add_argument(
        "--time",
        type=parse_minutes,
        default=60,
        metavar="TIME",
        help="limit: 90m, 24h, 2d, or as SLURM writes it, 1-12:00:00 (1h); the run is requeued "
        "and goes on when it is up",
    )
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--account", help="to charge")
    parser.add_argument("--qos", help="quality of service")
    parser.add_argument("--constraint", help="features that the nodes must have")
    parser.add_argument("--exclude", metavar="NODES", help="nodes to do without")
    parser.add_argument(
        "--signal-before",
        type=POSITIVE,
        default=90,
        metavar="SECONDS",
        help="seconds before the time limit at which SLURM sends the signal on which the run "
        "saves and ends (%(default)s)",
    )
    parser.add_argument(
        "--max-parallel",
        type=POSITIVE,
        default=256,
        metavar="JOBS",
        help="largest number of jobs of an array that run at the same time (256)",
    )
    parser.add_argument("--wait", action="store_true", help="until the jobs end, with their logs")


def resources(options: argparse.Namespace) -> Resources:
    """Read off the parsed options."""
    tasks = options.tasks_per_node or options.gpus_per_node or 1
    if options.gpus_per_node and tasks != options.gpus_per_node:
        raise UserError(
            f"--tasks-per-node {tasks} is not --gpus-per-node {options.gpus_per_node}: there is "
            "one task a GPU"
        )
    if options.cluster != "slurm" and options.nodes > 1:
        raise UserError(f"--nodes {options.nodes} needs --cluster slurm")
    if options.cluster == "debug" and tasks > 1:
        raise UserError(f"--cluster debug runs one task, not {tasks}; use --cluster local")
    names = ("cluster", "nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "partition")
    names += ("account", "qos", "constraint", "exclude", "signal_before", "max_parallel")
    given = {name: getattr(options, name) for name in names}
    return Resources(tasks_per_node=tasks, minutes=options.time, **given)


def parse_minutes(text: str) -> int:
    """Minutes of 90m, 24h, 2d, 30 (minutes), 2:30:00 or 1-12:00:00."""
    short = re.fullmatch(r"(\d+)([mhd]?)", text)
    if short:
        return max(int(short[1]) * {"": 1, "m": 1, "h": 60, "d": 1440}[short[2]], 1)
    long = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if long is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90m, 24h, 2d or 1-12:00:00")
    days, hours, mins, seconds = (int(part or 0) for part in long.groups())
    return max(days * 1440 + hours * 60 + mins + (seconds > 0), 1)


Point = tuple[tuple[str, str], ...]  # options and their values


def grid(sweeps: list[list[str]]) -> list[Point]:
    """All combinations of ``--sweep OPTION VALUE ...``; one without options if there is no sweep.

    Raises:
        UserError: an option without values, or two runs of one name.
    """
    for name, *values in sweeps:
        if not values:
            raise UserError(f"--sweep {name} needs values: --sweep {name} VALUE VALUE ...")
    choices = [[(name.lstrip("-"), value) for value in values] for name, *values in sweeps]
    points = list(itertools.product(*choices))
    named = Counter(map(name_of, points))
    for name, times in named.items():
        if times > 1:
            raise UserError(f"--sweep: {times} runs would be called {name}; give each value once")
    return points


def name_of(point: Point) -> str:
    """The folder of a run of a sweep, as c=5,lam=1."""
    return ",".join(f"{name.split('.')[-1]}={value}".replace("/", "-") for name, value in point)
