r"""Fine-tune a classifier with Deep Defense, and show its accuracy and rho2 before and after.

    torchrun --standalone --nproc_per_node=2 pipeline/finetune.py
    torchrun --nproc_per_node=8 pipeline/finetune.py --config configs/imagenet_resnet18.yaml \
        --data.train train.parquet --data.val val.parquet

Without --config the embedded demonstration runs: MNIST digits, on CPUs or GPUs.
"""

from pathlib import Path
from typing import Any

from pipeline.config import FinetuneConfig, messages, parse, warn_ignored

if __name__ == "__main__":  # a mistake in an option is reported before the slow imports below
    messages.check_options(FinetuneConfig, __doc__)

import torch

from pipeline.data import source
from pipeline.errors import STOPPED_EXIT_CODE, Stopped, exit_on_user_error, first_few, warn
from pipeline.evaluation import reference
from pipeline.models import build, prepare
from pipeline.runtime import config_file, machine, run_folder
from pipeline.runtime.distributed import distributed_session
from pipeline.runtime.files import write_json
from pipeline.runtime.monitor import Monitor
from pipeline.training.trainer import Trainer


def main() -> None:
    """Parse, join the ranks, train, report."""
    config = parse.parse(FinetuneConfig, __doc__)
    with exit_on_user_error(), distributed_session(config.runtime) as ranks:
        config = reference.resolve_reference(config)
        folder = run_folder.check_folder(config, "training")
        torch.manual_seed(config.train.seed)
        indices = source.open_index(config, "train"), source.open_index(config, "val")
        net = prepare.build_net(config, *indices)
        threads = source.decoding_threads(config.data, ranks.local_size)
        if not config.dry_run:
            run_folder.open_folder(config, ranks, "training", alone=True)
        trainer = Trainer(config, ranks, net, indices, threads)
        resumed = trainer.resume()
        steps_per_epoch = trainer.plan.steps_per_epoch
        warnings = [
            *warn_ignored(config, ranks.device.type, steps_per_epoch),
            build.preprocessing_advice(config.model, config.data),
        ]
        if config.dry_run:
            with Monitor(None, ranks.is_main) as monitor:
                monitor.say(describe(trainer))
                warn(*warnings)
            return
        with Monitor(folder, ranks.is_main, trainer.step) as monitor:
            monitor.say(describe(trainer))
            warn(*warnings)
            monitor.say(where(folder, resumed, trainer))
            if ranks.is_main:
                config_file.save(config, folder / "config.yaml")
            try:
                trainer.fit(monitor)
            except Stopped:
                monitor.say(messages.interrupted(f" after step {trainer.step}"))
                raise SystemExit(STOPPED_EXIT_CODE) from None
            trainer.export("weights.pth")
            skipped = trainer.gather_skipped_ids()
            if ranks.is_main:
                report(trainer, skipped, folder, monitor)
        ranks.barrier()


def describe(trainer: Trainer) -> str:
    """What will run, in a few lines."""
    config, ranks, schedule = trainer.config, trainer.ranks, trainer.schedule
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    budget = f"\nregularizer.max_images auto: {trainer.budget}" if trainer.budget else ""
    per_step = f"{ranks.world_size} rank(s) x {config.train.accumulation} pass(es)"
    return (
        f"{config.model.name}, {parameters:,} trained parameters, {config.runtime.precision} "
        f"on {ranks.world_size} x {ranks.device.type}\n"
        f"{len(trainer.train_index):,} images to train on, {len(trainer.val_index):,} held out\n"
        f"{schedule.clean_steps} clean steps, then "
        f"{schedule.total_steps - schedule.clean_steps} with {with_options(config)}, "
        f"each of {config.train.batch_size} images: "
        f"{per_step} x {trainer.plan.pass_size}{budget}"
    )


def with_options(config: FinetuneConfig) -> str:
    """The methods and their options."""
    own, objective = config.regularizer, config.objective
    layers = f", through {', '.join(own.layers)}" if own.layers else ""
    known = {
        "deep_defense": f"Deep Defense (lambda {own.lam:g}, c {own.c:g}, d {own.d:g}{layers})",
        "adversarial_2": f"adversarial training II (eps {objective.adversarial.eps}, weight "
        f"{objective.adversarial.weight:g})",
        "parseval": f"Parseval training (beta {objective.parseval.beta:g})",
        "clean": "the cross-entropy alone",
    }
    return " + ".join(known.get(name, name) for name in objective.method.split("+"))


def where(folder: Path, resumed: Path | None, trainer: Trainer) -> str:
    """Where the run writes, how to watch it, and what it resumes from."""
    begin = f"resuming from {resumed}, step {trainer.step}" if resumed else "a new run"
    return f"{begin}, in {folder}; watch: {messages.watch(folder)}"


def report(trainer: Trainer, skipped: list[str], folder: Path, monitor: Monitor) -> None:
    """Write summary.json and print before and after."""
    before, after = trainer.history[0], trainer.history[-1]
    config, size = trainer.config, trainer.config.train.batch_size
    summary: dict[str, Any] = {
        "before": before,
        "after": after,
        "definition": trainer.protocol.to_dict(),
        "images_per_second": size * trainer.step / max(trainer.seconds, 1e-9),
        "training_seconds": trainer.seconds,
        "steps": trainer.step,
        "skipped": skipped,
        "ranks": trainer.ranks.world_size,
        "device": trainer.ranks.device_name,
        "history": trainer.history,
        "versions": machine.versions(),
    }
    write_json(folder / "summary.json", summary)
    metrics = {
        f"after/{name}": float(after[name]) for name in ("accuracy", trainer.rho, "num_unflipped")
    }
    monitor.hyper_parameters(parse.flatten(parse.to_dict(config)), metrics, trainer.step)
    monitor.end_progress()
    monitor.table(before, after, trainer.rho)
    if skipped:
        monitor.say(f"{len(skipped)} training images did not decode: {first_few(skipped)}")
    monitor.say(f"{folder / 'summary.json'}, {folder / 'weights.pth'}")
    monitor.say(messages.after_training(config, trainer.ranks.world_size))


if __name__ == "__main__":
    main()
