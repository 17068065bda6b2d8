r"""Submit a fine-tuning, the evaluations of the weights before and after it, and a report.

    python launchers/chain.py --nodes 4 --gpus-per-node 8 --shards 16 --partition P --time 24h -- \
        --config configs/imagenet_resnet18.yaml --data.train train.parquet --data.val val.parquet \
        --output runs/r18

The options after -- are those of pipeline/finetune.py. After a second --, options of
pipeline/evaluate.py can be given; they apply to the evaluations only. The evaluations are written
to OUTPUT/before and OUTPUT/after, tables and figures to OUTPUT/report. All jobs are submitted at
once; each waits for the jobs that it depends on and is cancelled when one of them fails. The same
command again submits only what is not done.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from launchers import command_lines, options
from pipeline.config import EvaluateConfig, FinetuneConfig, Shard
from pipeline.runtime import config_file

if __name__ == "__main__":  # refuse misspelt options before importing torch, which takes seconds
    top = command_lines.chain_parser(__doc__)
    command_lines.check(top, sys.argv[1:], FinetuneConfig, EvaluateConfig)

import submitit
import yaml

from launchers import evaluate, finetune, submit
from launchers.follow import follow
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.tasks import Report
from pipeline.config import parse
from pipeline.errors import exit_on_user_error, warn
from pipeline.evaluation.resolve import resolve
from pipeline.evaluation.shard_results import Manifest, check_same_evaluation

# The evaluations: name of the folder, and file of the weights, which the fine-tuning writes.
PARTS = {"before": "reference.pth", "after": "weights.pth"}


def evaluations_of(
    tuning: FinetuneConfig, argv: list[str]
) -> tuple[dict[str, EvaluateConfig], Manifest]:
    """The configuration of each evaluation by its name in `PARTS`, and the manifest of both.

    Args:
        tuning: the fine-tuning, whose options the evaluations share.
        argv: options of pipeline/evaluate.py, which replace those of the fine-tuning.

    Raises:
        SystemExit: pipeline/evaluate.py would refuse an option.
        UserError: the jobs would refuse the data, the net or the weights.
    """
    folder = tuning.folder
    with tempfile.TemporaryDirectory() as temp_folder:
        base = Path(temp_folder) / "base.yaml"
        config_file.save(dataclasses.replace(tuning, resume="auto"), base)
        search = ["--evaluation.fgs.search", "true"]
        config = parse.parse(EvaluateConfig, __doc__, ["--config", str(base), *search, *argv])
    config = resolve(config)
    config = submit.with_absolute_paths(config)
    # The weights to evaluate do not exist yet, so the check uses those that the fine-tuning starts
    # from. With model.new_head they do not fit the new head; then the check uses none.
    weights = None if tuning.model.new_head else tuning.model.weights
    model = dataclasses.replace(tuning.model, weights=weights, new_head=False)
    manifest = evaluate.check(dataclasses.replace(config, model=model))
    evaluations = {
        part: dataclasses.replace(
            config,
            output=str(folder / part),
            model=dataclasses.replace(config.model, weights=str(folder / name)),
        )
        for part, name in PARTS.items()
    }
    return evaluations, manifest


def is_done(tuning: FinetuneConfig) -> bool:
    """Whether a fine-tuning with the same options has ended in its folder."""
    folder = tuning.folder
    try:
        options_then = yaml.safe_load((folder / "config.yaml").read_text())
        same = not parse.stored_differences(options_then, tuning, ("resume", "dry_run"))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):  # missing, or damaged
        return False
    return same and (folder / "summary.json").exists()


def refuse_other_evaluations(
    is_tuned: bool, evaluations: dict[str, EvaluateConfig], manifest: Manifest
) -> None:
    """Refuse results in OUTPUT/before or OUTPUT/after that were measured with other options.

    Args:
        is_tuned: the fine-tuning has ended, so the weights to evaluate exist and are compared.
        evaluations: the first result of `evaluations_of`.
        manifest: the second one. It has the weights that the fine-tuning starts from.

    Raises:
        UserError: names the folder and the differences.
    """
    for config in evaluations.values():
        remedy = f"remove {config.folder} to evaluate again, or give another --output"
        results = config.folder / "results"
        if is_tuned and results.exists():
            check_same_evaluation(results, evaluate.check(config), remedy=remedy)
        else:
            check_same_evaluation(results, manifest, ("weights",), remedy)


def launch(
    tuning: FinetuneConfig,
    evaluations: dict[str, EvaluateConfig],
    num_shards: int,
    resources: Resources,
    shard_resources: Resources,
) -> list[submitit.Job[None]]:
    """Submit what is not done, and return the jobs; without SLURM, run one part after the other.

    Args:
        tuning: the fine-tuning, with absolute paths.
        evaluations: the result of `evaluations_of`.
        num_shards: number of shards of each evaluation.
        resources: what the fine-tuning requests.
        shard_resources: what each shard requests.
    """
    folder = tuning.folder
    is_tuned = is_done(tuning)
    if is_tuned and resources.cluster == "slurm":  # the report's job runs the copy of the code
        submit.snapshot_code_and_config(folder, [tuning], resources)
    else:
        submit.check_can_submit(folder, resources)
    jobs: list[submitit.Job[None]] = []
    last_job_ids: list[str] = []  # the last job of each part; the report waits for these
    if not is_tuned:
        jobs += finetune.launch(folder, [tuning], resources)
        _announce("fine-tuning", jobs, resources)
        last_job_ids.append(jobs[-1].job_id)
    tuning_job_id = last_job_ids[0] if last_job_ids else None
    for name, config in evaluations.items():
        shards = [Shard(number, num_shards) for number in range(num_shards)]
        if is_tuned:  # otherwise the results are of earlier weights, which the jobs refuse
            shards = evaluate.unfinished_shards(config.folder, num_shards)
        if shards:
            shard_jobs = evaluate.launch(config, shards, shard_resources, tuning_job_id)
            _announce(name, shard_jobs, resources)
            jobs += shard_jobs
            last_job_ids.append(jobs[-1].job_id)
    return jobs + _launch_report(folder, last_job_ids, resources)


def _announce(name: str, jobs: list[submitit.Job[None]], resources: Resources) -> None:
    """Print the ids of a part's jobs; without SLURM, wait for them and show their logs.

    Raises:
        UserError: one of them failed, and the cluster is this machine.
    """
    log = jobs[-1].paths.stdout
    print(f"{name:<12} job {', '.join(submit.job_ids(jobs))}, log {log}", flush=True)
    if resources.cluster != "slurm":
        follow(jobs, resources, wait=True)


def _launch_report(
    folder: Path, last_job_ids: list[str], resources: Resources
) -> list[submitit.Job[None]]:
    """Submit the report, after these jobs; without SLURM, write it now, without a job."""
    report_folder = folder / "report"
    report_folder.mkdir(exist_ok=True)
    task = Report(str(folder))
    if resources.cluster != "slurm":
        task()
        return []
    dependency = f"afterok:{':'.join(last_job_ids)}" if last_job_ids else None
    jobs = submit.submit([task], folder, resources.single_task(), dependency)
    Submission.of(report_folder, "report", "slurm", jobs[0]).write()
    _announce("report", jobs, resources)
    return jobs


def main() -> None:
    """Check all options, then submit."""
    launcher_argv, run_argv = options.split(sys.argv[1:])
    tuning_argv, evaluation_argv = options.split(run_argv)
    args = command_lines.chain_parser(__doc__).parse_args(launcher_argv)
    with exit_on_user_error():
        resources = options.resources(args)
        _, (tuning,) = finetune.parse_configs([], tuning_argv)
        is_tuned = is_done(tuning)
        warn(*finetune.check(tuning, resources, is_tuned))
        evaluations, manifest = evaluations_of(tuning, evaluation_argv)
        refuse_other_evaluations(is_tuned, evaluations, manifest)
        num_shards = evaluate.num_shards(args.shards, resources.cluster, manifest)
        shard_resources = dataclasses.replace(resources.one_rank(), minutes=args.shard_time)
        if tuning.dry_run:
            names = ", ".join(evaluations)
            print(f"would submit: fine-tuning, {num_shards} shards for each of {names}, report")
            return
        jobs = launch(tuning, evaluations, num_shards, resources, shard_resources)
        if resources.cluster == "slurm":
            print(f"progress     {submit.jobs_command('--watch', tuning.folder)}")
            print(f"when done    see {tuning.folder / 'report' / 'report.md'}", flush=True)
            follow(jobs, resources, wait=args.wait)


if __name__ == "__main__":
    main()
