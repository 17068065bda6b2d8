r"""Fine-tune, evaluate before and after, report: all submitted at once, each after what it needs.

    python launchers/chain.py --nodes 4 --gpus-per-node 8 --shards 16 --partition P --time 24h -- \
        --config configs/imagenet_resnet18.yaml --data.train train.parquet --data.val val.parquet \
        --output runs/r18

What follows -- are the options of pipeline/finetune.py; after a second --, those of
pipeline/evaluate.py that are to differ in the evaluations. These are written to OUTPUT/before and
OUTPUT/after, tables and figures to OUTPUT/report. What waits for a job that fails is cancelled; the
same command again goes on with what is not done.
"""

import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path

from launchers import options
from pipeline.config import EvaluateConfig, FinetuneConfig
from pipeline.runtime import config_file

if __name__ == "__main__":  # refuse misspelt options before importing torch, which takes seconds
    own = ["shards", "shard-time"]
    options.check_names(sys.argv[1:], own, FinetuneConfig, EvaluateConfig)

import submitit
import yaml

from launchers import evaluate, finetune, submit
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.tasks import Report
from pipeline.config import arguments, parse
from pipeline.errors import exit_on_user_error, warn
from pipeline.evaluation import reference
from pipeline.evaluation.shard_results import Manifest

# What is evaluated: the folder, and the weights that the fine-tuning writes.
PARTS = {"before": "reference.pth", "after": "weights.pth"}


def parser() -> arguments.Parser:
    """The command line up to the first --."""
    top = arguments.Parser(
        description=__doc__,
        usage="%(prog)s [OPTIONS] -- [OF pipeline/finetune.py] [-- OF pipeline/evaluate.py]",
    )
    top.add_argument(
        "--shards", type=arguments.POSITIVE, help="jobs of each evaluation (8; 1 on this machine)"
    )
    top.add_argument(
        "--shard-time",
        type=options.parse_minutes,
        default=240,
        metavar="TIME",
        help="limit of a shard, which has one task and one GPU if nodes have any (4h)",
    )
    options.add_resources(top)
    return top


def evaluations_of(
    tuning: FinetuneConfig, words: list[str]
) -> tuple[dict[str, EvaluateConfig], Manifest]:
    """The options of each part: those of the fine-tuning, a search for eps_ref, and ``words``; and
    what they evaluate.

    Raises:
        SystemExit: an option that pipeline/evaluate.py would refuse.
        UserError: what the jobs would refuse.
    """
    folder = Path(tuning.output)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base.yaml"
        config_file.save(dataclasses.replace(tuning, resume="auto"), base)
        search = ["--evaluation.fgs.search", "true"]
        config = parse.parse(EvaluateConfig, __doc__, ["--config", str(base), *search, *words])
    config = submit.with_absolute_paths(reference.resolve_reference(config))
    # The weights to evaluate do not exist yet. Those to start from have another head where a new
    # one is asked for.
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
    """Whether the fine-tuning has ended, with these options."""
    folder = Path(tuning.output)
    try:
        options_then = yaml.safe_load((folder / "config.yaml").read_text())
        same = not parse.stored_differences(options_then, tuning, ("resume", "dry_run"))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):  # missing, or damaged
        return False
    return same and (folder / "summary.json").exists()


def launch(
    tuning: FinetuneConfig,
    evaluations: dict[str, EvaluateConfig],
    shards: int,
    resources: Resources,
    for_shards: Resources,
    wait: bool,
) -> None:
    """Submit what is not done; on this machine, one after the other."""
    folder, slurm = Path(tuning.output), resources.cluster == "slurm"
    submit.check_can_submit(folder, resources)
    jobs: list[submitit.Job[None]] = []
    needed: list[str] = []  # by the report

    def submitted(name: str, more: list[submitit.Job[None]]) -> None:
        last = more[-1]
        print(f"{name:<12} job {', '.join(submit.job_ids(more))}, log {last.paths.stdout}")
        sys.stdout.flush()
        jobs.extend(more)
        needed.append(last.job_id)
        if not slurm:
            submit.follow(more, resources, True)

    if not is_done(tuning):
        submitted("fine-tuning", finetune.launch(folder, [tuning], resources))
    first = needed[0] if needed else None
    for name, config in evaluations.items():
        todo = evaluate.unfinished_shards(Path(config.output), shards)
        if todo:
            submitted(name, evaluate.launch(config, todo, for_shards, first))
    report_folder = folder / "report"
    report_folder.mkdir(exist_ok=True)
    if not slurm:
        Report(str(folder))()
        return
    condition = f"afterok:{':'.join(needed)}" if needed else None
    task = Report(str(folder))
    report = submit.submit([task], folder, resources.single_task(), condition)
    Submission.of(report_folder, "report", "slurm", report[0]).write()
    submitted("report", report)
    print(f"progress     python launchers/jobs.py --watch {shlex.quote(str(folder))}")
    submit.follow(jobs, resources, wait)


def main() -> None:
    """Check everything, then submit."""
    mine, theirs = options.split(sys.argv[1:])
    tuning_words, evaluation_words = options.split(theirs)
    asked = parser().parse_args(mine)
    with exit_on_user_error():
        resources = options.resources(asked)
        _, (tuning,) = finetune.parse_configs([], tuning_words)
        warn(*finetune.check(tuning, resources))
        evaluations, manifest = evaluations_of(tuning, evaluation_words)
        default = 8 if resources.cluster == "slurm" else 1
        shards = evaluate.num_shards(asked.shards, default, manifest)
        gpus = 1 if resources.gpus_per_node else None
        for_shards = dataclasses.replace(
            resources, nodes=1, tasks_per_node=1, gpus_per_node=gpus, minutes=asked.shard_time
        )
        if tuning.dry_run:
            names = ", ".join(evaluations)
            print(f"would submit: fine-tuning, {shards} shards for each of {names}, report")
            return
        launch(tuning, evaluations, shards, resources, for_shards, asked.wait)


if __name__ == "__main__":
    main()
