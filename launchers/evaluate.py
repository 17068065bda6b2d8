"""Submit pipeline/evaluate.py as a job array, and a job that joins the shards.

    python launchers/evaluate.py --shards 16 --gpus-per-node 1 --partition P --time 2h -- \
        --data.val val.parquet --model.name resnet18 --model.weights resnet18.pth --output runs/eval

What follows -- are the options of pipeline/evaluate.py; they are checked before anything is
submitted. The same command again submits only the shards that are not done.
"""

import argparse
import sys
from pathlib import Path

import torch

from launchers import options, submission
from launchers.job import Merge, Task
from pipeline import cli, merge, setup
from pipeline.config import EvaluateConfig, Shard
from pipeline.distributed import guarded
from pipeline.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line up to --."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument(
        "--shards", type=options.positive, default=8, help="jobs of the array (%(default)s)"
    )
    options.add_resources(top)
    return top


def check(config: EvaluateConfig) -> None:
    """Refuse what the jobs would refuse.

    Raises:
        UserError: names the option.
    """
    if config.part.of != 1:
        raise UserError("shard: the launcher sets it; say how many with --shards before --")
    index = setup.open_index(config, "val")
    with torch.random.fork_rng(devices=[]):
        setup.build_net(config, index)


def undone(folder: Path, shards: int) -> list[Shard]:
    """The shards that lack images: all of them where nothing was found yet."""
    every = [Shard(number, shards) for number in range(shards)]
    if not list(folder.glob("results/*/rank*.jsonl")):
        return every
    lacking = merge.join(folder).lacking(shards)
    return [shard for shard in every if shard.number in lacking]


def main() -> None:
    """Check, submit what is not done, and the job that joins."""
    mine, theirs = options.split(sys.argv[1:])
    asked = parser().parse_args(mine)
    config = cli.parse(EvaluateConfig, __doc__, theirs, output_suffix="-evaluation")
    with guarded():
        resources = options.resources(asked)
        check(config)
        folder = Path(config.output).absolute()
        shards = undone(folder, asked.shards)
        if not shards:
            print(f"all images are done; python tools/report.py merge {folder} joins them")
            return
        if config.dry_run:
            print(f"would submit {len(shards)} of {asked.shards} shards")
            return
        given = submission.snapshot(folder, config)
        tasks = [
            Task(
                "pipeline.evaluate",
                ("--config", str(given), "--shard", str(shard)),
                str(Path.cwd()),
            )
            for shard in shards
        ]
        jobs = submission.submit(tasks, folder, resources)
        submission.record(folder, "evaluate", jobs[0], resources)
        names = ", ".join(map(str, shards))
        print(submission.tell(folder, jobs[0], resources))
        print(f"shards       {names}")
        if resources.cluster == "slurm":
            array = jobs[0].job_id.partition("_")[0]
            (last,) = submission.submit(
                [Merge(str(folder))],
                folder,
                resources.alone(),
                slurm_dependency=f"afterany:{array}",
            )
            print(
                f"job {last.job_id} joins them when they have ended; its log: {last.paths.stdout}"
            )


if __name__ == "__main__":
    main()
