"""Submit pipeline/finetune.py to SLURM: one task a GPU, requeued and resumed when it is cut.

    python launchers/finetune.py --nodes 4 --gpus-per-node 8 --partition P --time 24h -- \
        --config configs/imagenet_resnet18.yaml --data.train train.parquet --output runs/r18
    python launchers/finetune.py --sweep regularizer.c 5 10 15 --sweep regularizer.lam 1 5 \
        --gpus-per-node 8 --time 12h -- --config configs/imagenet_resnet18.yaml --output runs/c
    python launchers/finetune.py --cluster local --tasks-per-node 2 -- --output runs/try

What follows -- are the options of pipeline/finetune.py; they are checked before anything is
submitted. The code and the options are copied into the run's folder. A sweep is one array with a
run for each combination, in a folder of its own below --output.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import submitit
import torch

from launchers import options, submission
from launchers.job import Task
from launchers.options import Resources
from launchers.submissions import Submission
from pipeline import cli, setup
from pipeline.config import FinetuneConfig
from pipeline.data.batches import TrainingPlan
from pipeline.errors import guarded


def parser() -> argparse.ArgumentParser:
    """The command line up to --."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument(
        "--sweep",
        action="append",
        nargs="+",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="an option of pipeline/finetune.py and its values; several: all combinations",
    )
    options.add_resources(top)
    return top


def parse(sweeps: list[list[str]], words: list[str]) -> tuple[Path, list[FinetuneConfig]]:
    """The folder of the whole, and a configuration for each run of the sweep, or the only one.

    Raises:
        SystemExit: an option that pipeline/finetune.py would refuse.
        UserError: evaluation.fgs.reference names a folder without an eps_ref.
    """
    folder = Path(cli.parse(FinetuneConfig, __doc__, words).output).absolute()
    configs = []
    for point in options.grid(sweeps):
        more = [word for name, value in point for word in (f"--{name}", value)]
        config = cli.parse(FinetuneConfig, __doc__, [*words, *more])
        config.output = str(folder / options.name_of(point))
        configs.append(submission.absolute(setup.resolve_reference(config)))
    return folder, configs


def check(config: FinetuneConfig, resources: Resources) -> None:
    """Refuse what the run would refuse: data, weights, a batch that the ranks cannot share.

    Raises:
        UserError: names the option.
    """
    indices = setup.open_index(config, "train"), setup.open_index(config, "val")
    TrainingPlan(indices[0], config.data, config.train, 0, resources.ranks)
    with torch.random.fork_rng(devices=[]):
        setup.build_net(config, *indices)


def launch(
    folder: Path, configs: Sequence[FinetuneConfig], resources: Resources
) -> list[submitit.Job[None]]:
    """Submit one run, or an array of them."""
    given = submission.snapshot(folder, configs, resources)
    tasks = [Task("pipeline.finetune", ("--config", str(path)), str(Path.cwd())) for path in given]
    jobs = submission.submit(tasks, folder, resources)
    for config, job in zip(configs, jobs, strict=True):
        Submission.of(Path(config.output), "finetune", resources.cluster, job).write()
    return jobs


def main() -> None:
    """Check, submit, tell."""
    mine, theirs = options.split(sys.argv[1:])
    asked = parser().parse_args(mine)
    with guarded():
        folder, configs = parse(asked.sweep, theirs)
        resources = options.resources(asked)
        for config in configs:
            check(config, resources)
        if configs[0].dry_run:
            shape = f"{resources.nodes} x {resources.tasks_per_node} task(s)"
            print(f"would submit {shape} for each of:")
            print(*(config.output for config in configs), sep="\n")
            return
        jobs = launch(folder, configs, resources)
        places = f"checkpoints  {Path(configs[0].output) / 'checkpoints'}"
        print(submission.tell(folder, jobs, resources, places), flush=True)
        submission.follow(jobs, resources, asked.wait)


if __name__ == "__main__":
    main()
