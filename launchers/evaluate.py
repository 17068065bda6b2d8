r"""Submit pipeline/evaluate.py as an array of shards, and a job that merges their results.

    python launchers/evaluate.py --shards 16 --gpus-per-node 1 --partition P --time 2h -- \
        --data.val val.parquet --model.name resnet18 --model.weights resnet18.pth --output runs/eval

The options after -- are those of pipeline/evaluate.py; they are checked before anything is
submitted. The same command again submits only the shards with missing images.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers import command_lines, options
from pipeline.config import EvaluateConfig, Shard, ignored_option_messages, messages

if __name__ == "__main__":  # refuse misspelt options before importing torch, which takes seconds
    command_lines.check(command_lines.evaluate_parser(__doc__), sys.argv[1:], EvaluateConfig)

import submitit
import torch

from launchers import submit
from launchers.follow import follow
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.tasks import Merge, Task
from pipeline import evaluate as entry
from pipeline.config import parse
from pipeline.data import source
from pipeline.errors import UserError, exit_on_user_error, warn
from pipeline.evaluation import merge
from pipeline.evaluation.resolve import resolve
from pipeline.evaluation.shard_results import Manifest, ResultsFolder, check_same_evaluation
from pipeline.models import prepare


def check(config: EvaluateConfig) -> Manifest:
    """Refuse the mistakes that the jobs would refuse; return the manifest of the evaluation.

    Raises:
        UserError: names the option.
    """
    if config.part.num_shards != 1:
        raise UserError(
            "shard: the launcher sets this option; give the number of shards by --shards before --"
        )
    index = source.open_index(config, "val")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as the jobs do
        net = prepare.build_net(config, index)
    device = config.runtime.device  # of the jobs; a login node need not have their GPUs
    return entry.make_manifest(config, index, net, None if device == "auto" else device)


def num_shards(requested: int | None, cluster: str, manifest: Manifest) -> int:
    """The number of shards: the requested one, else the default, but never more than images.

    Raises:
        UserError: more shards than images are requested.
    """
    indexed, limit = manifest.identity.num_indexed, manifest.identity.num_images
    num_images = indexed if limit is None else min(indexed, limit)
    if requested is None:
        return min(8 if cluster == "slurm" else 1, num_images)
    if requested > num_images:
        raise UserError(
            f"--shards {requested}: there are {num_images} images; give at most as many"
        )
    return requested


def unfinished_shards(folder: Path, total: int) -> list[Shard]:
    """The shards with missing images, of ``total``; all shards if the folder has no results."""
    shards = [Shard(number, total) for number in range(total)]
    if not list(folder.glob("results/*/rank*.jsonl")):
        return shards
    num_missing = merge.merge_shards(folder).num_missing_by_shard(total)
    return [shard for shard in shards if shard.number in num_missing]


def launch(
    config: EvaluateConfig,
    shards: Sequence[Shard],
    resources: Resources,
    after_job: str | None = None,
) -> list[submitit.Job[None]]:
    """Submit shards as one array and, on SLURM, the merging job, which comes last in the result.

    Args:
        config: the options of the evaluation, with absolute paths.
        shards: the shards to evaluate.
        resources: what each shard requests.
        after_job: id of a job that must succeed first.
    """
    folder = config.folder
    (config_path,) = submit.snapshot_code_and_config(folder, [config], resources)
    argv = "--config", str(config_path), "--shard"
    tasks = [Task("pipeline.evaluate", (*argv, str(shard)), str(Path.cwd())) for shard in shards]
    dependency = f"afterok:{after_job}" if after_job else None
    jobs = submit.submit(tasks, folder, resources, dependency)
    ids, logs = submit.job_ids(jobs), [str(job.paths.stdout) for job in jobs]
    submission = Submission(folder, "evaluate", resources.cluster, ids, logs, None)
    submission.write()  # the array is known even if SLURM refuses the merging job
    if resources.cluster == "slurm":
        # afterany: the merging job also runs when a shard failed, to report what is missing.
        merge_after = ",".join(filter(None, [f"afterany:{ids[0]}", dependency]))
        jobs += submit.submit([Merge(str(folder))], folder, resources.single_task(), merge_after)
        dataclasses.replace(submission, joined_by=jobs[-1].job_id).write()
    return jobs


def main() -> None:
    """Check the options, then submit the shards that are not done and the merging job."""
    launcher_argv, run_argv = options.split(sys.argv[1:])
    args = command_lines.evaluate_parser(__doc__).parse_args(launcher_argv)
    config = parse.parse(EvaluateConfig, __doc__, run_argv, output_suffix="-evaluation")
    with exit_on_user_error():
        resources = options.resources(args)
        config = resolve(config)
        manifest = check(config)
        total = num_shards(args.shards, resources.cluster, manifest)
        warn(*ignored_option_messages(config))
        config = submit.with_absolute_paths(config)
        check_same_evaluation(config.folder / "results", manifest)
        shards = unfinished_shards(config.folder, total)
        if not shards:
            command = ["python", messages.script("tools/report.py"), "merge", str(config.folder)]
            print(f"all images are done; to write the outputs again: {shlex.join(command)}")
            return
        if config.resume != "auto":  # the jobs would refuse never, or a folder without results
            for shard in shards:
                ResultsFolder.for_shard(config.folder / "results", config.resume, manifest, shard)
        shard_line = f"shards       {', '.join(map(str, shards))}"
        if config.dry_run:
            print(f"would submit {len(shards)} of {total} jobs, into {config.folder}\n{shard_line}")
            return
        jobs = launch(config, shards, resources)
        shard_jobs, merge_jobs = jobs[: len(shards)], jobs[len(shards) :]
        lines = [f"merged by    job {j.job_id}, log {j.paths.stdout}" for j in merge_jobs]
        table = ["python", messages.script("tools/report.py"), "table", str(config.folder)]
        lines.append(f"when done    {shlex.join(table)}")
        message = submit.submission_message(
            config.folder, config, shard_jobs, resources, shard_line, *lines
        )
        print(message, flush=True)
        follow(jobs, resources, wait=args.wait)


if __name__ == "__main__":
    main()
