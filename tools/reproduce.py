r"""Repeat the paper's experiments: every method of Table 1 on one net, and Figures 2 to 4.

    python tools/reproduce.py mnist_mlp --data DIR --seeds 0 1 2 --max-parallel 2
    python tools/reproduce.py mnist_mlp --data DIR --attack best
    python tools/reproduce.py mnist_lenet --data DIR --figure 3
    python tools/reproduce.py imagenet_resnet18 --data DIR --cluster slurm --nodes 4 \
        --gpus-per-node 8 --partition P --time 24h
    python tools/reproduce.py mnist_mlp --output runs/longer -- --train.epochs 20

The command makes indices and a mean image from the downloads in DIR, the reference net, its
DeepFool examples, a fine-tuning for each method, and their evaluations. Then it writes the table
(our numbers and the paper's), the figures and CSV files to OUTPUT/report. Parts that exist are not
made again, so the same command resumes after an interruption. On this machine --max-parallel runs
(default: 1) run at the same time, each on --tasks-per-node ranks. Options of pipeline/finetune.py
for every run follow after --.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launchers import options, submit
from launchers.follow import follow
from launchers.options import Resources
from pipeline.config import AttackConfig, arguments
from pipeline.config.checks import OptionError
from pipeline.config.text import did_you_mean
from pipeline.errors import STOPPED_EXIT_CODE, UserError, exit_on_user_error
from pipeline.runtime.files import check_writable
from reproduction import data, earlier, estimate, recorded, report, run, sweep
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.plan import PlannedRun, Planner


def parser() -> arguments.Parser:
    """The command line up to --."""
    top = arguments.Parser(description=__doc__)
    top.add_argument("experiment", choices=EXPERIMENTS)
    top.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that contains the downloads, at any depth"
    )
    top.add_argument(
        "--output", type=Path, help="folder of all runs (default: runs/reproduce/EXPERIMENT)"
    )
    top.add_argument("--seeds", type=arguments.SEED, nargs="+", default=[0], help="(0)")
    top.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="only these methods (default: all; --dry-run lists them)",
    )
    top.add_argument(
        "--figure",
        type=int,
        choices=(2, 3, 4),
        help="only the runs of this figure; 2: by epoch, for the first seed (the report of the "
        "table has it too), 3: lambda and c, 4: layers and c, mean and spread of the seeds",
    )
    top.add_argument(
        "--points",
        nargs="+",
        metavar="POINT",
        help="only these points of Figure 3 or 4, such as 'conv1,c=5' or 'lam=15,*' (default: all; "
        "--dry-run lists them); --with-report joins figures that are made in several parts",
    )
    top.add_argument(
        "--attack",
        type=_attack_method,
        metavar="METHOD",
        help="also evaluate every net by this evaluation.attack.method, such as best or "
        "superdeepfool; the report then has a table of distances by each attack (default: by the "
        "paper's DeepFool only)",
    )
    top.add_argument("--weights", help="weights of the reference, instead of the experiment's own")
    top.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs with their estimated time on this machine",
    )
    top.add_argument(
        "--with-report",
        type=Path,
        metavar="DIR",
        help="also put the rows of this earlier report, of other seeds or methods, into the tables "
        "or into Figure 3 or 4 (a folder with table.csv, or with figure3.csv or figure4.csv); its "
        "Deep Defense gives eps_ref where this command does not run it",
    )
    options.add_resources(top)
    top.set_defaults(cluster="local", max_parallel=None)
    return top


def _attack_method(text: str) -> str:
    """A value of evaluation.attack.method."""
    try:
        AttackConfig(method=text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def plan(args: argparse.Namespace, planner: Planner) -> list[PlannedRun]:
    """The runs that the options request.

    Raises:
        UserError: there is no such method or figure.
    """
    if args.points and args.figure not in (3, 4):
        raise UserError("--points: only Figures 3 and 4 have points; give --figure 3 or 4")
    if args.methods and args.figure in (3, 4):
        raise UserError(f"--methods: Figure {args.figure} has none; choose --points instead")
    names = [method.name for method in planner.experiment.methods]
    methods = args.methods or names
    unknown = sorted(set(methods) - set(names))
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise UserError(f"--methods: no {', '.join(unknown)}; there are {', '.join(names)}{hint}")
    if args.figure is None:
        return planner.table(args.seeds, methods)
    if args.figure == 2:
        return planner.histories(args.seeds[0], methods)
    return planner.sweep(args.seeds, args.figure, args.points or ["*"])


def check_weights(weights: str | None) -> None:
    """Refuse a file of weights that does not exist.

    Raises:
        UserError: the message states how to make the file.
    """
    if weights is not None and weights.endswith(".pth") and not Path(weights).exists():
        raise UserError(
            f"--weights: no file {weights}; the paper's AlexNet is Caffe's: make it with "
            "tools/caffe.py bvlc_alexnet.caffemodel FILE.pth"
        )


def check_earlier_report(experiment: Experiment, folder: Path | None, figure: int | None) -> None:
    """Read the report of --with-report, so that a mistake is reported before hours of work.

    Raises:
        UserError: it has no such table or figure.
    """
    if folder is None:
        return
    if figure in (3, 4):
        sweep.earlier_rows(folder, figure)
    else:
        earlier.table_rows(folder, experiment.title, report.titles_by_method(experiment))


def show(
    planned_runs: list[PlannedRun],
    done: set[str],
    seconds: dict[str, float],
    ranks: int,
    max_parallel: int,
) -> None:
    """Print the runs with their estimated time, in an order in which they can run."""
    listing = Table("run", "state", "estimate", box=None)
    seconds_left = 0.0
    for planned in planned_runs:
        if planned.name in done:
            listing.add_row(planned.name, "done", "")
        else:
            listing.add_row(planned.name, "", run.duration(seconds[planned.name]))
            seconds_left += seconds[planned.name]
    Console(soft_wrap=True).print(listing)
    total = run.duration(seconds_left / max_parallel)
    print(f"about {total} on this machine, {max_parallel} at a time, {ranks} rank(s) each")


def command_of(args: argparse.Namespace, run_argv: list[str]) -> str:
    """The command that gives the same numbers on another machine."""
    options_with_values = {
        "--seeds": args.seeds,
        "--methods": args.methods,
        "--figure": [args.figure],
        "--points": args.points,
        "--attack": [args.attack],
        "--weights": [args.weights],
        "--tasks-per-node": [args.tasks_per_node],
        "--with-report": [args.with_report and _without_root(args.with_report)],
    }
    command = ["python", "tools/reproduce.py", args.experiment, "--data", "DIR"]
    for name, values in options_with_values.items():
        if values and values != [None]:
            command += [name, *(str(value) for value in values)]
    if run_argv:
        command += ["--", *run_argv]
    return shlex.join(command)


def _without_root(folder: Path) -> Path:
    """The name of a folder that is given from the root, which is another one elsewhere."""
    return Path(folder.name) if folder.is_absolute() else folder


def run_here(
    experiment: Experiment, output: Path, todo: list[PlannedRun], resources: Resources
) -> None:
    """Run on this machine.

    Raises:
        SystemExit: after Ctrl-C; the runs have saved their state.
        UserError: some runs failed.
    """
    ranks, max_parallel = resources.tasks_per_node, resources.max_parallel
    estimator = estimate.RuntimeEstimator(experiment, output / "data", ranks, max_parallel)
    seconds = estimator.seconds(todo)
    try:
        run.run_locally(todo, seconds, ranks, max_parallel)
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        raise SystemExit(STOPPED_EXIT_CODE) from None


def main() -> None:
    """Plan, make the data, run, report."""
    own_argv, run_argv = options.split(sys.argv[1:])
    args = parser().parse_args(own_argv)
    with exit_on_user_error():
        experiment = EXPERIMENTS[args.experiment]
        output = (args.output or Path("runs/reproduce") / experiment.name).absolute()
        check_writable(output / "report" / "report.md", "give another --output")
        args.max_parallel = args.max_parallel or (256 if args.cluster == "slurm" else 1)
        resources = options.resources(args)
        check_earlier_report(experiment, args.with_report, args.figure)
        if args.data is not None and not args.data.is_dir():
            raise UserError(f"--data: no folder {args.data}")
        planner = Planner(experiment, output, run_argv, args.weights, args.attack)
        planned_runs = plan(args, planner)
        done = {planned.name for planned in planned_runs if planned.done()}
        todo = [planned for planned in planned_runs if planned.name not in done]
        if args.dry_run:
            message = "timing a few steps of each kind on this machine; large nets take minutes"
            print(message, file=sys.stderr)
            ranks, max_parallel = resources.tasks_per_node, resources.max_parallel
            if resources.cluster == "slurm":  # the estimate is for one run on this machine
                ranks, max_parallel = 1, 1
            estimator = estimate.RuntimeEstimator(experiment, output / "data", ranks, max_parallel)
            seconds = estimator.seconds(planned_runs)
            show(planned_runs, done, seconds, ranks, max_parallel)
            return
        check_weights(args.weights or experiment.weights)
        data.prepare(experiment.data, args.data, output / "data")
        if todo and resources.cluster == "slurm":
            jobs = run.on_slurm(output, todo, resources)
            print(f"progress: {submit.jobs_command('--watch', output)}")
            if not args.wait:
                print("once the jobs have ended, the same command writes the report")
                return
            follow(jobs, resources, wait=True)
        elif todo:
            run_here(experiment, output, todo, resources)
        command = command_of(args, run_argv)
        page = report.Report(
            *(experiment, output, args.seeds, planned_runs, command, args.figure),
            earlier=args.with_report,
            others=recorded.find(planner, planned_runs, args.seeds),
        ).write()
        print(page.read_text())
        print(page)


if __name__ == "__main__":
    main()
