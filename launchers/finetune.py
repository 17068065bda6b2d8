r"""Submit pipeline/finetune.py to SLURM: one task for each GPU, requeued when it is interrupted.

    python launchers/finetune.py --nodes 4 --gpus-per-node 8 --partition P --time 24h -- \
        --config configs/imagenet_resnet18.yaml --data.train train.parquet --output runs/r18
    python launchers/finetune.py --sweep regularizer.c 5 10 15 --sweep regularizer.lam 1 5 \
        --gpus-per-node 8 --time 12h -- --config configs/imagenet_resnet18.yaml --output runs/c
    python launchers/finetune.py --cluster local --tasks-per-node 2 -- --output runs/try

The options after -- are those of pipeline/finetune.py; they are checked before anything is
submitted. The code and the options are copied into the run's folder. A requeued run resumes from
its last checkpoint. A sweep is submitted as one array with one run for each combination of values,
each in its own folder below --output.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers import command_lines, options
from pipeline.config import FinetuneConfig, ignored_option_messages, messages

if __name__ == "__main__":  # refuse misspelt options before importing torch, which takes seconds
    command_lines.check(command_lines.finetune_parser(__doc__), sys.argv[1:], FinetuneConfig)

import submitit
import torch

from launchers import submit
from launchers.follow import follow
from launchers.options import Resources
from launchers.run_status import Submission
from launchers.tasks import Task
from pipeline.config import parse
from pipeline.data import source
from pipeline.data.batches import TrainingPlan
from pipeline.errors import exit_on_user_error, warn
from pipeline.evaluation.resolve import resolve
from pipeline.models import prepare
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.fingerprint import fingerprint
from pipeline.training.resume_point import resume_point


def parse_configs(
    sweeps: list[list[str]], run_argv: list[str]
) -> tuple[Path, list[FinetuneConfig]]:
    """The folder given by --output, and one configuration for each run of the sweep.

    Without a sweep there is one configuration, and its folder is that of --output.

    Raises:
        SystemExit: pipeline/finetune.py would refuse an option.
        UserError: evaluation.fgs.reference names a folder without an eps_ref.
    """
    folder = parse.parse(FinetuneConfig, __doc__, run_argv).folder.absolute()
    configs = []
    for point in options.grid(sweeps):
        point_argv = [text for name, value in point for text in (f"--{name}", value)]
        config = parse.parse(FinetuneConfig, __doc__, [*run_argv, *point_argv])
        config.output = str(folder / options.name_of(point))
        config = resolve(config)
        configs.append(submit.with_absolute_paths(config))
    return folder, configs


def check(config: FinetuneConfig, resources: Resources, is_done: bool = False) -> list[str]:
    """Refuse the mistakes that the run would refuse; return the warnings that it would print.

    Checks the data, the weights, whether the ranks can divide a batch, and the checkpoint that the
    run would resume from.

    Args:
        config: the options of the run.
        resources: what it requests.
        is_done: the run has ended and will not be submitted, so its checkpoint is not checked.

    Raises:
        UserError: names the option.
    """
    indices = source.open_index(config, "train"), source.open_index(config, "val")
    plan = TrainingPlan(indices[0], config.data, config.train, 0, resources.ranks)
    labelled = prepare.labelled_indices(config, *indices)
    with torch.random.fork_rng(devices=[]):
        net = prepare.build_net(config, *labelled)
    checkpoints = Checkpoints(config.folder / "checkpoints", config.checkpoint)
    point = None
    if not is_done:
        point = resume_point(checkpoints, config.resume, set_aside=False)
    if point is not None:
        own = fingerprint(config, indices[0], net), labelled[0].classes
        # The device of the jobs is not known here, so the decoder is taken to be the same.
        checkpoint.check(point.path, point.state, config, *own, point.state.get("decoder"))
    return ignored_option_messages(config, steps_per_epoch=plan.steps_per_epoch)


def launch(
    folder: Path, configs: Sequence[FinetuneConfig], resources: Resources
) -> list[submitit.Job[None]]:
    """Submit one run, or an array of them."""
    paths = submit.snapshot_code_and_config(folder, configs, resources)
    tasks = [Task("pipeline.finetune", ("--config", str(path)), str(Path.cwd())) for path in paths]
    jobs = submit.submit(tasks, folder, resources)
    for config, job in zip(configs, jobs, strict=True):
        Submission.of(config.folder, "finetune", resources.cluster, job).write()
    return jobs


def evaluation_command(config: FinetuneConfig, resources: Resources) -> str:
    """The command that evaluates the weights of a run, with the same cluster's defaults."""
    command = ["python", messages.script("launchers/evaluate.py")]
    same = {
        "--cluster": resources.cluster if resources.cluster != "slurm" else None,
        "--partition": resources.partition,
        "--account": resources.account,
        "--qos": resources.qos,
        "--constraint": resources.constraint,
        "--gpus-per-node": "1" if resources.gpus_per_node else None,
    }
    for name, value in same.items():
        command += [name, value] if value is not None else []
    return shlex.join([*command, "--", *messages.evaluation_options(config)])


def main() -> None:
    """Check the options, submit the runs, and print where to find and how to stop them."""
    launcher_argv, run_argv = options.split(sys.argv[1:])
    args = command_lines.finetune_parser(__doc__).parse_args(launcher_argv)
    with exit_on_user_error():
        folder, configs = parse_configs(args.sweep, run_argv)
        resources = options.resources(args)
        warn(*dict.fromkeys(line for config in configs for line in check(config, resources)))
        if configs[0].dry_run:
            shape = f"{resources.nodes} x {resources.tasks_per_node} task(s)"
            print(f"would submit {shape} for each of:")
            print(*(config.output for config in configs), sep="\n")
            return
        jobs = launch(folder, configs, resources)
        lines = [f"checkpoints  {configs[0].folder / 'checkpoints'}"]
        if len(configs) == 1:
            lines.append(f"when done    {evaluation_command(configs[0], resources)}")
        print(submit.submission_message(folder, configs[0], jobs, resources, *lines), flush=True)
        follow(jobs, resources, wait=args.wait)


if __name__ == "__main__":
    main()
