r"""Submit pipeline/evaluate.py as a job array, and a job that joins the shards.

    python launchers/evaluate.py --shards 16 --gpus-per-node 1 --partition P --time 2h -- \
        --data.val val.parquet --model.name resnet18 --model.weights resnet18.pth --output runs/eval

What follows -- are the options of pipeline/evaluate.py; they are checked before anything is
submitted. The same command again submits only the shards that are not done.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launchers import options
from pipeline.config import EvaluateConfig, Shard, warn_ignored

if __name__ == "__main__":  # refuse misspelt options before importing torch, which takes seconds
    options.check_names(sys.argv[1:], ["shards"], EvaluateConfig)

import submitit
import torch

from launchers import submit
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.tasks import Merge, Task
from pipeline import evaluate as entry
from pipeline.config import arguments, parse
from pipeline.data import source
from pipeline.errors import UserError, exit_on_user_error, warn
from pipeline.evaluation import merge, reference
from pipeline.evaluation.shard_results import Manifest, refuse_other
from pipeline.models import prepare


def parser() -> arguments.Parser:
    """The command line up to --."""
    top = arguments.Parser(
        description=__doc__, usage="%(prog)s [OPTIONS] -- [OPTIONS OF pipeline/evaluate.py]"
    )
    top.add_argument("--shards", type=arguments.POSITIVE, help="jobs of the array (8)")
    options.add_resources(top)
    return top


def check(config: EvaluateConfig) -> Manifest:
    """Refuse what the jobs would refuse; what they will evaluate.

    Raises:
        UserError: names the option.
    """
    if config.part.of != 1:
        raise UserError("shard: the launcher sets it; say how many with --shards before --")
    index = source.open_index(config, "val")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as the jobs do
        net = prepare.build_net(config, index)
    return entry.describe(config, index, net)


def num_shards(asked: int | None, default: int, manifest: Manifest) -> int:
    """Jobs of an evaluation: as asked for; by default no more than there are images.

    Raises:
        UserError: there would be shards without images.
    """
    indexed, limit = manifest.identity.num_indexed, manifest.identity.num_images
    num_images = indexed if limit is None else min(indexed, limit)
    if asked is not None and asked > num_images:
        raise UserError(f"--shards {asked}: there are {num_images} images; give at most as many")
    return min(default, num_images) if asked is None else asked


def unfinished_shards(folder: Path, shards: int) -> list[Shard]:
    """The shards that lack images: all of them where nothing was found yet."""
    every = [Shard(number, shards) for number in range(shards)]
    if not list(folder.glob("results/*/rank*.jsonl")):
        return every
    lacking = merge.merge_shards(folder).num_missing_by_shard(shards)
    return [shard for shard in every if shard.number in lacking]


def launch(
    config: EvaluateConfig,
    shards: Sequence[Shard],
    resources: Resources,
    after: str | None = None,
) -> list[submitit.Job[None]]:
    """Submit shards and, on SLURM, the job that joins them, which is the last.

    Args:
        config: with absolute paths.
        shards: to evaluate.
        resources: of each.
        after: a job that must end well first.
    """
    folder = config.folder
    (given,) = submit.snapshot_code_and_config(folder, [config], resources)
    words = "--config", str(given), "--shard"
    tasks = [Task("pipeline.evaluate", (*words, str(shard)), str(Path.cwd())) for shard in shards]
    condition = f"afterok:{after}" if after else None
    jobs = submit.submit(tasks, folder, resources, condition)
    numbers, logs = submit.job_ids(jobs), [str(job.paths.stdout) for job in jobs]
    joined_by = None
    if resources.cluster == "slurm":
        ended = ",".join(filter(None, [f"afterany:{numbers[0]}", condition]))
        jobs += submit.submit([Merge(str(folder))], folder, resources.single_task(), ended)
        joined_by = jobs[-1].job_id
    Submission(folder, "evaluate", resources.cluster, numbers, logs, joined_by).write()
    return jobs


def main() -> None:
    """Check, submit what is not done, and the job that joins."""
    mine, theirs = options.split(sys.argv[1:])
    asked = parser().parse_args(mine)
    config = parse.parse(EvaluateConfig, __doc__, theirs, output_suffix="-evaluation")
    with exit_on_user_error():
        resources = options.resources(asked)
        config = reference.resolve_reference(config)
        manifest = check(config)
        total = num_shards(asked.shards, 8, manifest)
        warn(*warn_ignored(config))
        config = submit.with_absolute_paths(config)
        folder = config.folder
        refuse_other(folder / "results", manifest)
        shards = unfinished_shards(folder, total)
        if not shards:
            print(f"all images are done; python tools/report.py merge {folder} joins them")
            return
        names = f"shards       {', '.join(map(str, shards))}"
        if config.dry_run:
            print(f"would submit {len(shards)} of {total} jobs, into {folder}\n{names}")
            return
        jobs = launch(config, shards, resources)
        tasks = jobs[: len(shards)]
        joining = [
            f"joined by    job {job.job_id}, log {job.paths.stdout}" for job in jobs[len(tasks) :]
        ]
        print(submit.submission_message(folder, tasks, resources, names, *joining), flush=True)
        submit.follow(jobs, resources, asked.wait)


if __name__ == "__main__":
    main()
