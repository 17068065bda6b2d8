"""Submit pipeline/finetune.py to SLURM: one task a GPU, requeued and resumed when it is cut.

    python launchers/finetune.py --nodes 4 --gpus-per-node 8 --partition P --time 24h -- \
        --config configs/imagenet_resnet18.yaml --data.train train.parquet --output runs/r18
    python launchers/finetune.py --cluster local --tasks-per-node 2 -- --output runs/try

What follows -- are the options of pipeline/finetune.py; they are checked before anything is
submitted. The code and the options are copied into the run's folder.
"""

import argparse
import sys
from pathlib import Path

import torch

from launchers import options, submission
from launchers.job import Task
from launchers.options import Resources
from pipeline import cli, setup
from pipeline.config import FinetuneConfig
from pipeline.data.batches import TrainingPlan
from pipeline.distributed import guarded


def parser() -> argparse.ArgumentParser:
    """The command line up to --."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_resources(top)
    top.add_argument("--wait", action="store_true", help="until the run has ended, with its log")
    return top


def check(config: FinetuneConfig, resources: Resources) -> None:
    """Refuse what the run would refuse: data, weights, a batch that the ranks cannot share.

    Raises:
        UserError: names the option.
    """
    indices = setup.open_index(config, "train"), setup.open_index(config, "val")
    TrainingPlan(indices[0], config.data, config.train, 0, resources.ranks)
    with torch.random.fork_rng(devices=[]):
        setup.build_net(config, *indices)


def main() -> None:
    """Check, submit, tell."""
    mine, theirs = options.split(sys.argv[1:])
    asked = parser().parse_args(mine)
    config = cli.parse(FinetuneConfig, __doc__, theirs)
    with guarded():
        resources = options.resources(asked)
        check(config, resources)
        if config.dry_run:
            print(f"would submit {resources.nodes} x {resources.tasks_per_node} task(s)")
            return
        folder = Path(config.output).absolute()
        given = submission.snapshot(folder, config)
        task = Task("pipeline.finetune", ("--config", str(given)), str(Path.cwd()))
        (job,) = submission.submit([task], folder, resources)
        submission.record(folder, "finetune", job, resources)
        print(submission.tell(folder, job, resources), flush=True)
        if asked.wait:
            submission.wait(job)


if __name__ == "__main__":
    main()
