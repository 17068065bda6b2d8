"""Options that have no effect together with the other options of a run."""

from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from typing import Any

from .checks import shown
from .evaluation import AttackConfig
from .runs import FinetuneConfig, RunConfig
from .training import RegularizerConfig, ScheduleConfig

_GRADIENT_OPTIONS = (
    *("layers", "gradient", "form", "include_misclassified", "smallest_share"),
    *("through_earlier_steps", "precision"),
)
BUILT_IN_METHODS = ("clean", "deep_defense", "adversarial_2", "parseval")


def ignored_option_messages(
    config: RunConfig, device: str | None = None, steps_per_epoch: int | None = None
) -> list[str]:
    """A line for each option that was changed but has no effect, and for a schedule that does not
    fit the run.

    Args:
        config: the options of the run.
        device: type of the run's device, cpu or cuda; None if it is not known yet.
        steps_per_epoch: number of optimiser steps; None if it is not known yet.
    """
    defaults = type(config)()
    lines = [
        f"{option} {shown(_value(config, option))} has no effect: {reason}"
        for option, reason in _without_effect(config, device)
        if _value(config, option) != _value(defaults, option)
    ]
    if isinstance(config, FinetuneConfig) and config.train.epochs > 0:
        lines += _beyond_the_end(config, steps_per_epoch)
    return lines


def _value(config: RunConfig, option: str) -> Any:
    return reduce(getattr, option.split("."), config)


def _without_effect(config: RunConfig, device: str | None) -> Iterator[tuple[str, str]]:
    """Options that these settings leave without effect, and why."""
    on_cpu = "cpu" in (device, config.runtime.device)
    if on_cpu:
        for name in ("runtime.tf32", "runtime.deterministic", "data.hw_decoder_load"):
            yield name, "the run is on a CPU"
    elif config.data.decoder == "cpu":
        yield "data.hw_decoder_load", "data.decoder is cpu"
    yield from _of_attack("evaluation.attack", config.evaluation.attack)
    yield from _of_all_runs(config)
    if not isinstance(config, FinetuneConfig):
        return
    if config.regularizer.gradient != "one_step":
        yield from _of_attack("regularizer.attack", config.regularizer.attack)
    yield from _of_schedule(config.schedule)
    if config.train.pretrain_epochs == 0:
        yield "train.pretrain_lr", "train.pretrain_epochs is 0"
    if not config.data.random_crop:
        for name in ("crop_scale", "crop_ratio"):
            yield f"data.{name}", "data.random_crop is false"
    if on_cpu:
        yield "data.half_input", "the run is on a CPU"
    yield from _of_methods(config)


def _of_all_runs(config: RunConfig) -> Iterator[tuple[str, str]]:
    if not config.evaluation.fgs.enabled:
        yield "evaluation.fgs.direction", "there are no evaluation.fgs.eps and no search"
    if config.data.train == config.data.val == "demo":
        yield "data.root", "the embedded digits have a folder of their own"
    if {"wandb", "mlflow"}.isdisjoint(config.tracking.trackers):
        for name in ("tracking.project", "tracking.name"):
            yield name, "it is for tracking.trackers wandb and mlflow"


def _of_attack(section: str, attack: AttackConfig) -> Iterator[tuple[str, str]]:
    yield from _of_methods_of_attack(section, attack)
    descends = not {"ddn", "fmn"}.isdisjoint(attack.methods)
    if attack.step_direction == "loss_gradient" and not descends:
        for name in ("candidate_search", "pruning_factor"):
            yield f"{section}.{name}", f"{section}.step_direction is loss_gradient"
    elif attack.candidate_search == "exhaustive":
        yield f"{section}.pruning_factor", f"it is for {section}.candidate_search pruned"


def _of_methods_of_attack(section: str, attack: AttackConfig) -> Iterator[tuple[str, str]]:
    """Options of attacks that ``method`` does not name."""
    reason = f"{section}.method is {attack.method}"
    if "superdeepfool" not in attack.methods:
        for name in ("max_projections", "restarts"):
            yield f"{section}.{name}", reason
    elif section == "regularizer.attack":
        yield f"{section}.restarts", "it is for evaluations"
    if {"ddn", "fmn"}.isdisjoint(attack.methods):
        yield f"{section}.descent_steps", reason
    if not any(":" in name for name in attack.methods):
        yield f"{section}.options", reason
    if {"deepfool", "superdeepfool"}.isdisjoint(attack.methods):
        deepfool_options = ("max_iterations", "overshoot", "target_class", "linearize_at")
        for name in (*deepfool_options, "step_direction"):
            yield f"{section}.{name}", reason


def _of_schedule(schedule: ScheduleConfig) -> Iterator[tuple[str, str]]:
    by_steps = schedule.kind == "step"
    if not by_steps:
        for name in ("gamma", "milestones"):
            yield f"schedule.{name}", f"schedule.kind is {schedule.kind}, not step"
    elif not schedule.milestones:
        yield "schedule.gamma", "there are no schedule.milestones"
    if schedule.warmup == 0 and not (by_steps and schedule.milestones):
        yield "schedule.unit", "there is no warm-up and no milestone"


def _of_methods(config: FinetuneConfig) -> Iterator[tuple[str, str]]:
    """Options of methods that the run does not use, or uses with weight 0. Nothing is yielded if
    there is a user's own method, because it may read all options."""
    names = config.objective.method.split("+")
    if any(name not in BUILT_IN_METHODS for name in names):
        return
    reason = f"objective.method is {config.objective.method}"
    yield "objective.options", f"{reason}; they are for methods of your own (package.module:Class)"
    gradient_options = tuple(f"regularizer.{name}" for name in _GRADIENT_OPTIONS)
    if "deep_defense" in names and config.regularizer.lam == 0:
        for option in gradient_options:
            yield option, "regularizer.lam is 0"
    elif "deep_defense" in names:
        yield from _of_regularizer(config.regularizer)
    owners = {
        "deep_defense": gradient_options,
        "adversarial_2": tuple(
            f"objective.adversarial.{n}" for n in ("eps", "weight", "direction")
        ),
        "parseval": ("objective.parseval.beta", "objective.parseval.columns"),
    }
    for method, options in owners.items():
        for option in options if method not in names else ():
            yield option, f"{reason}, without {method}"


def _of_regularizer(options: RegularizerConfig) -> Iterator[tuple[str, str]]:
    if options.gradient == "one_step":
        for field in fields(AttackConfig):
            if field.name != "norm":
                yield f"regularizer.attack.{field.name}", "regularizer.gradient is one_step"
    if options.gradient != "unrolled":
        yield "regularizer.through_earlier_steps", f"regularizer.gradient is {options.gradient}"
    elif options.attack.max_iterations == 1:
        yield "regularizer.through_earlier_steps", "regularizer.attack.max_iterations is 1"
    if not options.include_misclassified:
        reason = "regularizer.include_misclassified is false"
        yield from (("regularizer.d", reason), ("regularizer.min_probability", reason))
        return
    if options.form == "hinge":
        reason = "regularizer.form is hinge"
        yield from (("regularizer.d", reason), ("regularizer.min_probability", reason))
    elif options.smallest_share < 1.0:
        yield "regularizer.min_probability", "regularizer.smallest_share is below 1"


def _beyond_the_end(config: FinetuneConfig, steps_per_epoch: int | None) -> list[str]:
    """Warm-up and milestones that the run does not reach."""
    schedule, length = config.schedule, config.train.epochs
    if schedule.unit == "steps":
        if steps_per_epoch is None:
            return []
        length *= steps_per_epoch
    run = f"the run's {length} {schedule.unit} with the regulariser"
    lines = []
    if schedule.warmup > length:
        lines.append(
            f"schedule.warmup {schedule.warmup:g} is longer than {run}: the learning rate "
            "does not reach optim.lr"
        )
    late = [f"{milestone:g}" for milestone in schedule.milestones if milestone >= length]
    if schedule.kind == "step" and late:
        lines.append(f"schedule.milestones {', '.join(late)}: not reached in {run}")
    return lines
