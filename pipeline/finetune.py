r"""Fine-tune a classifier with Deep Defense, and show its accuracy and rho2 before and after.

    torchrun --standalone --nproc_per_node=2 pipeline/finetune.py
    torchrun --nproc_per_node=8 pipeline/finetune.py --config configs/imagenet_resnet18.yaml \
        --data.train train.parquet --data.val val.parquet

Without --config the embedded demonstration runs: MNIST digits, on CPUs or GPUs.
"""

from pathlib import Path
from typing import Any

import pipeline.runtime.agent  # noqa: F401  it looks up torchrun's process before slow imports
from pipeline.config import (
    AttackConfig,
    FinetuneConfig,
    RegularizerConfig,
    ignored_option_messages,
    messages,
    parse,
)

if __name__ == "__main__":  # a mistake in an option is reported before the slow imports below
    messages.check_options(FinetuneConfig, __doc__)

import torch

from pipeline.attacks import chain
from pipeline.data import source
from pipeline.errors import STOPPED_EXIT_CODE, Stopped, exit_on_user_error, first_few, warn
from pipeline.evaluation.resolve import resolve
from pipeline.models import prepare
from pipeline.models.preprocessing import preprocessing_advice
from pipeline.models.trial import trial_images
from pipeline.runtime import config_file, machine, run_folder
from pipeline.runtime.distributed import DistributedContext, distributed_session
from pipeline.runtime.files import write_json
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.trackers.opening import check_trackers
from pipeline.training.cost_note import cost_note
from pipeline.training.trainer import Trainer


def main() -> None:
    """Parse, join the ranks, train, report."""
    config = parse.parse(FinetuneConfig, __doc__)
    with exit_on_user_error(), distributed_session(config.runtime) as ranks:
        trainer = make_trainer(config, ranks)
        resumed = trainer.resume()
        folder = None if config.dry_run else trainer.folder
        step = -1 if resumed is None else trainer.step
        options, evaluated = parse.to_dict(trainer.config), trainer.history.has_step(trainer.step)
        with Monitor(folder, ranks.is_main, step, options, evaluated=evaluated) as monitor:
            print_description(trainer, monitor)
            if folder is None:
                return
            monitor.say(start_description(folder, resumed, trainer))
            if ranks.is_main:
                config_file.save(trainer.config, folder / "config.yaml")
                if trainer.step < trainer.schedule.total_steps:  # of a run that was further
                    (folder / "summary.json").unlink(missing_ok=True)
            train(trainer, monitor)
            skipped = trainer.gather_skipped_ids()
            if ranks.is_main:
                report(trainer, skipped, folder, monitor)
        ranks.barrier()


def make_trainer(config: FinetuneConfig, ranks: DistributedContext) -> Trainer:
    """Check the options and the data, open the output folder unless this is a dry run, and build
    the net; all ranks must call this."""
    config = resolve(config)
    chain.stages_of(config.evaluation.attack)  # reports a mistake in an attack's options
    if ranks.is_main:
        check_trackers(config.tracking)
    run_folder.check_folder(config, "training")
    torch.manual_seed(config.train.seed)
    source.check_decoder(config.data, ranks.device)
    indices = source.open_index(config, "train"), source.open_index(config, "val")
    net = prepare.build_net(config, *prepare.labelled_indices(config, *indices))
    threads = source.decoding_threads(config.data, ranks.num_sharing_cores())
    if not config.dry_run:
        run_folder.open_folder(config, ranks, "training", exclusive=True)
    return Trainer(config, ranks, net, indices, threads)


def print_description(trainer: Trainer, monitor: Monitor) -> None:
    """Say what will run, and warn about options that are probably a mistake."""
    config = trainer.config
    monitor.say(description(trainer))
    warn(
        *ignored_option_messages(config, trainer.ranks.device.type, trainer.plan.steps_per_epoch),
        preprocessing_advice(config.model, config.data),
        messages.no_lower_bound(trainer.held_out.no_lower_bound),
    )


def train(trainer: Trainer, monitor: Monitor) -> None:
    """Train to the end and write the weights.

    Raises:
        SystemExit: after a signal; everything is saved.
    """
    try:
        trainer.fit(monitor)
    except Stopped:
        monitor.say(messages.interrupted(f" after step {trainer.step}", trainer.config.resume))
        raise SystemExit(STOPPED_EXIT_CODE) from None
    trainer.export("weights.pth")


def description(trainer: Trainer) -> str:
    """A description of the run, in a few lines."""
    config, ranks, schedule = trainer.config, trainer.ranks, trainer.schedule
    num_parameters = sum(parameter.numel() for parameter in trainer.runner.parameters)
    targets = budget = ""
    if config.objective.targets == "reference":
        targets = (
            f"labels are not used: the classes are those predicted with {config.model.weights}"
        )
    if trainer.runner.budget is not None:
        budget = f"regularizer.max_images auto: {trainer.runner.budget}"
    cost = cost_note(trainer.runner.objective, trial_images(config.data, 2).to(ranks.device))
    per_step = f"{ranks.world_size} rank(s) x {config.train.gradient_accumulation_steps} pass(es)"
    lines = (
        f"{config.model.name}, {num_parameters:,} trained parameters, {config.runtime.precision} "
        f"on {ranks.world_size} x {ranks.device.type}",
        f"{len(trainer.train_index):,} images to train on, {len(trainer.val_index):,} held out",
        f"{schedule.clean_steps} clean steps, then "
        f"{schedule.total_steps - schedule.clean_steps} with {methods_description(config)}, "
        f"each of {config.train.batch_size} images: "
        f"{per_step} x {trainer.plan.pass_size}",
        targets,
        budget,
        cost,
    )
    return "\n".join(filter(None, lines))


def methods_description(config: FinetuneConfig) -> str:
    """A description of the methods and their options."""
    regularizer, objective = config.regularizer, config.objective
    adversarial = objective.adversarial
    descriptions = {
        "deep_defense": f"Deep Defense ({_of_regularizer(regularizer)})",
        "adversarial_2": f"adversarial training II (eps {adversarial.eps}, "
        f"weight {adversarial.weight:g})",
        "parseval": f"Parseval training (beta {objective.parseval.beta:g})",
        "clean": "the cross-entropy only",
    }
    return " + ".join(descriptions.get(name, name) for name in objective.method.split("+"))


def _of_regularizer(options: RegularizerConfig) -> str:
    """The options of Deep Defense; of those with a usual value only others."""
    parts = [f"lambda {options.lam:g}, c {options.c:g}, d {options.d:g}", options.gradient]
    if options.gradient != "one_step":
        parts += _of_attack(options.attack)
    if options.form != "exp":
        parts.append(f"form {options.form}")
    if not options.include_misclassified:
        parts.append("correctly classified samples only")
    if options.smallest_share < 1:
        parts.append(f"the worst {options.smallest_share:.3g} of a batch")
    if options.precision is not None:
        parts.append(options.precision)
    if options.layers:
        parts.append(f"through {', '.join(options.layers)}")
    return ", ".join(parts)


def _of_attack(attack: AttackConfig) -> list[str]:
    """The length of the attack."""
    length = f"at most {attack.max_iterations} iteration{'s' * (attack.max_iterations > 1)}"
    if attack.method == "deepfool":
        return [length]
    return [f"{attack.method}, at most {attack.max_projections} projections", length]


def start_description(folder: Path, resumed: Path | None, trainer: Trainer) -> str:
    """A line with the run's folder, how to watch it, and the checkpoint that it resumes from."""
    start = "a new run"
    if resumed is not None:
        start = f"resuming from {resumed}, step {trainer.step}"
    return f"{start}, in {folder}; watch: {messages.watch(trainer.config)}"


def report(trainer: Trainer, skipped: list[str], folder: Path, monitor: Monitor) -> None:
    """Write summary.json, and print accuracy and rho2 before and after.

    Args:
        trainer: the trainer, after training.
        skipped: ids of training images that were not decoded.
        folder: the folder of the run.
        monitor: prints the table.
    """
    history, config = trainer.history.to_list(), trainer.config
    before, after = history[0], history[-1]
    num_images = config.train.batch_size * trainer.step
    summary: dict[str, Any] = {
        "before": before,
        "after": after,
        "definition": trainer.protocol.to_dict(),
        "images_per_second": num_images / max(trainer.seconds, 1e-9),
        "training_seconds": trainer.seconds,
        "steps": trainer.step,
        "skipped": skipped,
        "ranks": trainer.ranks.world_size,
        "device": trainer.ranks.device_name,
        "history": history,
        "versions": machine.versions(),
    }
    write_json(folder / "summary.json", summary)
    names = ("accuracy", trainer.rho, "num_unflipped")
    metrics = {f"after/{name}": float(after[name]) for name in names if after[name] is not None}
    monitor.final_metrics(trainer.step, metrics)
    monitor.end_progress()
    monitor.table(before, after, trainer.rho)
    if skipped:
        monitor.say(f"{len(skipped)} training images were not decoded: {first_few(skipped)}")
    monitor.say(f"{folder / 'summary.json'}, {folder / 'weights.pth'}")
    monitor.say(messages.after_training(config, trainer.ranks.local_size))


if __name__ == "__main__":
    main()
