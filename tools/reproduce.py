r"""The paper's experiments: every method of Table 1 on one net, and Figures 2 to 4, by one command.

    python tools/reproduce.py mnist_mlp --data DIR --seeds 0 1 2 --max-parallel 2
    python tools/reproduce.py mnist_lenet --data DIR --figure 3
    python tools/reproduce.py imagenet_resnet18 --data DIR --cluster slurm --nodes 4 \
        --gpus-per-node 8 --partition P --time 24h
    python tools/reproduce.py mnist_mlp --output runs/longer -- --train.epochs 20

It makes what is missing: indices and mean image from the downloads in DIR, the reference net, its
DeepFool examples, a fine-tuning for each method, their evaluations, and OUTPUT/report with the
table (the paper's numbers beside ours), the figures and CSV files. The same command resumes an
interrupted run. On this machine --max-parallel runs go side by side (1), each in --tasks-per-node
ranks. What follows -- are options of pipeline/finetune.py for every run.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launchers import options, submit
from launchers.options import Resources
from pipeline.config import arguments
from pipeline.errors import STOPPED_EXIT_CODE, UserError, exit_on_user_error
from pipeline.runtime.files import check_writable
from reproduction import data, estimate, report, run
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.plan import PlannedRun, Planner


def parser() -> arguments.Parser:
    """The command line up to --."""
    top = arguments.Parser(description=__doc__)
    top.add_argument("experiment", choices=EXPERIMENTS)
    top.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the downloads, or one above them"
    )
    top.add_argument(
        "--output", type=Path, help="folder of all runs (default: runs/reproduce/EXPERIMENT)"
    )
    top.add_argument("--seeds", type=arguments.SEED, nargs="+", default=[0], help="(0)")
    top.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="only these (default: all; see --dry-run)"
    )
    top.add_argument(
        "--figure",
        type=int,
        choices=(2, 3, 4),
        help="only the runs of this figure, of the first seed: 2 by epoch (with the table, too), 3 "
        "lambda by c, 4 layers by c",
    )
    top.add_argument("--weights", help="of the reference, in place of the experiment's own")
    top.add_argument(
        "--dry-run", action="store_true", help="list the runs with their estimated time here"
    )
    options.add_resources(top)
    top.set_defaults(cluster="local", max_parallel=None)
    return top


def plan(asked: argparse.Namespace, output: Path, words: list[str]) -> list[PlannedRun]:
    """The units that are asked for.

    Raises:
        UserError: there is no such method or figure.
    """
    experiment: Experiment = EXPERIMENTS[asked.experiment]
    planner = Planner(experiment, output, words, asked.weights)
    known = [method.name for method in experiment.methods]
    names = asked.methods or known
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"--methods: no {', '.join(unknown)}; there are {', '.join(known)}")
    if asked.figure is None:
        return planner.table(asked.seeds, names)
    if asked.figure == 2:
        return planner.histories(asked.seeds[0], names)
    return planner.sweep(asked.seeds[0], asked.figure)


def check_weights(weights: str | None) -> None:
    """Refuse a file of weights that is not there.

    Raises:
        UserError: it is not; says where weights come from.
    """
    if weights is not None and weights.endswith(".pth") and not Path(weights).exists():
        raise UserError(
            f"--weights: no file {weights}; the paper's AlexNet is Caffe's: make it with "
            "tools/caffe.py bvlc_alexnet.caffemodel FILE.pth"
        )


def show(
    units: list[PlannedRun], done: set[str], seconds: dict[str, float], ranks: int, at_once: int
) -> None:
    """The runs, in an order in which they can run, with what they will take."""
    listed = Table("run", "state", "estimate", box=None)
    for unit in units:
        state = "done" if unit.name in done else ""
        time = "" if unit.name in done else run.duration(seconds[unit.name])
        listed.add_row(unit.name, state, time)
    Console(soft_wrap=True).print(listed)
    left = sum(seconds[unit.name] for unit in units if unit.name not in done)
    print(f"about {run.duration(left / at_once)} here, {at_once} at once, {ranks} rank(s) each")


def command_of(asked: argparse.Namespace, words: list[str]) -> str:
    """The command that gives the same numbers elsewhere."""
    chosen = {
        "seeds": asked.seeds,
        "methods": asked.methods or [],
        "figure": [asked.figure],
        "weights": [asked.weights],
        "tasks-per-node": [asked.tasks_per_node],
    }
    given = [
        word
        for name, values in chosen.items()
        if any(value is not None for value in values)
        for word in (f"--{name}", *map(str, values))
    ]
    more = ["--", *words] if words else []
    return shlex.join(
        ["python", "tools/reproduce.py", asked.experiment, "--data", "DIR", *given, *more]
    )


def here(
    experiment: Experiment, output: Path, todo: list[PlannedRun], resources: Resources
) -> None:
    """Run the units on this machine.

    Raises:
        SystemExit: Ctrl-C; all is saved.
        UserError: some failed.
    """
    ranks, at_once = resources.tasks_per_node, resources.max_parallel
    seconds = estimate.RuntimeEstimator(experiment, output / "data", ranks, at_once).seconds(todo)
    try:
        run.run_locally(todo, seconds, ranks, at_once)
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        raise SystemExit(STOPPED_EXIT_CODE) from None


def main() -> None:
    """Plan, make the data, run, report."""
    mine, words = options.split(sys.argv[1:])
    asked = parser().parse_args(mine)
    with exit_on_user_error():
        experiment = EXPERIMENTS[asked.experiment]
        output = (asked.output or Path("runs/reproduce") / experiment.name).absolute()
        check_writable(output / "report" / "report.md", "give another --output")
        asked.max_parallel = asked.max_parallel or (256 if asked.cluster == "slurm" else 1)
        resources = options.resources(asked)
        if asked.data is not None and not asked.data.is_dir():
            raise UserError(f"--data: no folder {asked.data}")
        units = plan(asked, output, words)
        done = {unit.name for unit in units if unit.done()}
        todo = [unit for unit in units if unit.name not in done]
        if asked.dry_run:
            print("timing a few steps of each kind here; minutes for large nets", file=sys.stderr)
            slurm = resources.cluster == "slurm"  # whose machines are not this one
            ranks, at_once = (1, 1) if slurm else (resources.tasks_per_node, resources.max_parallel)
            seconds = estimate.RuntimeEstimator(
                experiment, output / "data", ranks, at_once
            ).seconds(units)
            show(units, done, seconds, ranks, at_once)
            return
        check_weights(asked.weights or experiment.weights)
        data.prepare(experiment.data, asked.data, output / "data")
        if todo and resources.cluster == "slurm":
            jobs = run.on_slurm(output, todo, resources)
            print(f"progress: python launchers/jobs.py --watch {shlex.quote(str(output))}")
            if not asked.wait:
                print("the same command again, once they have ended, writes the report")
                return
            submit.follow(jobs, resources, wait=True)
        elif todo:
            here(experiment, output, todo, resources)
        command = command_of(asked, words)
        page = report.write(experiment, output, asked.seeds, units, command, asked.figure)
        print(page.read_text())
        print(page)


if __name__ == "__main__":
    main()
