"""Options that all launchers share: the cluster, and the resources to request from it.

In: the command line. Out: `Resources`, from the options before ``--``; the arguments after ``--``,
which are options of the entry point; and the runs of a sweep.
"""

import argparse
import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace

from pipeline.config.arguments import POSITIVE, Number, Parser
from pipeline.config.checks import Range
from pipeline.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What a job requests. None means the cluster's default."""

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
        """The number of tasks on all nodes."""
        return self.nodes * self.tasks_per_node

    def single_task(self) -> "Resources":
        """Resources of a short job on the same partition: one task, no GPU, 30 minutes, and its
        share of the memory."""
        return replace(self.one_rank(), gpus_per_node=None, minutes=30)

    def one_rank(self) -> "Resources":
        """Resources of a job of one rank: a task with its share of the node's memory and GPUs."""
        memory = None if self.mem_gb is None else self.mem_gb / self.tasks_per_node
        gpus = 1 if self.gpus_per_node else None
        return replace(self, nodes=1, tasks_per_node=1, gpus_per_node=gpus, mem_gb=memory)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before the first ``--``, and those after it."""
    if "--" not in argv:
        return argv, []
    position = argv.index("--")
    return argv[:position], argv[position + 1 :]


def add_resources(parser: Parser) -> None:
    """Add the options of `Resources`, and --wait."""
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="where to run: slurm submits jobs, local starts background processes on this machine, "
        "debug runs in this process (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes", type=POSITIVE, default=1, help="number of nodes of a job (default: %(default)s)"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=POSITIVE,
        help="number of GPUs on each node; one task is started for each (default: no GPU is "
        "requested)",
    )
    parser.add_argument(
        "--tasks-per-node",
        type=POSITIVE,
        help="number of tasks (ranks) on each node (default: the number of GPUs, or 1)",
    )
    parser.add_argument(
        "--cpus-per-task",
        type=POSITIVE,
        help="number of CPU cores of each task (default: the cluster's)",
    )
    parser.add_argument(
        "--mem-gb",
        type=Number(float, Range(above=0, unit="GB")),
        help="memory of each node (default: the cluster's)",
    )
    parser.add_argument(
        "--time",
        type=parse_minutes,
        default=60,
        metavar="TIME",
        help="time limit of each job: 90m, 24h, 2d, or in SLURM's format, 1-12:00:00; a number "
        "without a unit is minutes (default: 1h). A run that reaches the limit is requeued and "
        "resumes. Without SLURM there is no limit",
    )
    _add_slurm_options(parser)
    parser.add_argument(
        "--wait", action="store_true", help="wait until the jobs end, and show their logs"
    )


def _add_slurm_options(parser: Parser) -> None:
    parser.add_argument("--partition", help="SLURM's partition (default: the cluster's)")
    parser.add_argument("--account", help="SLURM's account to charge (default: the cluster's)")
    parser.add_argument("--qos", help="SLURM's quality of service (default: the cluster's)")
    parser.add_argument(
        "--constraint", help="features that the nodes must have, as for sbatch (default: none)"
    )
    parser.add_argument(
        "--exclude",
        metavar="NODES",
        help="nodes that must not be used, as for sbatch (default: none)",
    )
    parser.add_argument(
        "--signal-before",
        type=POSITIVE,
        default=90,
        help="seconds before the time limit at which the run gets the signal to save (%(default)s)",
    )
    parser.add_argument(
        "--max-parallel",
        type=POSITIVE,
        default=256,
        metavar="JOBS",
        help="largest number of jobs of an array that run at the same time (256); --cluster local "
        "starts all at once, and refuses more",
    )


def resources(options: argparse.Namespace) -> Resources:
    """The resources that the parsed options request.

    Raises:
        UserError: options that exclude each other.
    """
    tasks = options.tasks_per_node or options.gpus_per_node or 1
    if options.gpus_per_node and tasks != options.gpus_per_node:
        raise UserError(
            f"--tasks-per-node {tasks} differs from --gpus-per-node {options.gpus_per_node}: each "
            "GPU has exactly one task; leave out --tasks-per-node"
        )
    if options.cluster != "slurm" and options.nodes > 1:
        raise UserError(f"--nodes {options.nodes} needs --cluster slurm")
    if options.cluster == "debug" and tasks > 1:
        raise UserError(f"--cluster debug runs one task, not {tasks}; use --cluster local")
    names = ("cluster", "nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "partition")
    names += ("account", "qos", "constraint", "exclude", "signal_before", "max_parallel")
    values = {name: getattr(options, name) for name in names}
    return Resources(tasks_per_node=tasks, minutes=options.time, **values)


def parse_minutes(text: str) -> int:
    """Minutes of 90m, 24h, 2d, 30 (minutes), 2:30:00 or 1-12:00:00; at least 1.

    Raises:
        ArgumentTypeError: the text has another format.
    """
    short = re.fullmatch(r"(\d+)([mhd]?)", text)
    if short:
        return max(int(short[1]) * {"": 1, "m": 1, "h": 60, "d": 1440}[short[2]], 1)
    long = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if long is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 90m, 24h, 2d or 1-12:00:00"
        )
    days, hours, minutes, seconds = (int(part or 0) for part in long.groups())
    return max(days * 1440 + hours * 60 + minutes + (seconds > 0), 1)


Point = tuple[tuple[str, str], ...]  # one run of a sweep: names of options, and their values


def grid(sweeps: list[list[str]]) -> list[Point]:
    """All combinations of ``--sweep OPTION VALUE ...``; without a sweep, one empty point.

    Raises:
        UserError: an option has no values, or two runs would have the same name.
    """
    for name, *values in sweeps:
        if not values:
            raise UserError(f"--sweep {name} needs values: --sweep {name} VALUE VALUE ...")
    choices = [[(name.lstrip("-"), value) for value in values] for name, *values in sweeps]
    points = list(itertools.product(*choices))
    for name, num_runs in Counter(map(name_of, points)).items():
        if num_runs > 1:
            raise UserError(f"--sweep: {num_runs} runs would be named {name}; give each value once")
    return points


def name_of(point: Point) -> str:
    """The name of the folder of a sweep's run, such as c=5,lam=1; empty without a sweep."""
    return ",".join(f"{name.split('.')[-1]}={value}".replace("/", "-") for name, value in point)
