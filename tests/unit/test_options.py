"""Every numeric option refuses NaN, infinity and numbers out of its range in one line."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from pipeline.config import (
    AttackConfig,
    EvaluateConfig,
    FinetuneConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    ignored_option_messages,
    parse,
)
from pipeline.config.checks import OptionError, Range, Section, options

# Stated here once more: options for which 0 or infinity is a valid value. -1 and NaN never are.
ZERO_IS_VALID = {
    *("num_examples", "data.mean", "data.hw_decoder_load"),
    *("evaluation.attack.overshoot", "evaluation.fgs.eps"),
    *("evaluation.attack.restarts", "regularizer.attack.restarts"),
    *("evaluation.attack.max_projections", "regularizer.attack.max_projections"),
    *("regularizer.lam", "regularizer.c", "regularizer.d", "regularizer.attack.overshoot"),
    *("objective.adversarial.weight", "objective.parseval.beta"),
    *("optim.lr", "optim.momentum", "optim.weight_decay"),
    *("schedule.warmup", "schedule.milestones", "log.panel_images"),
    *("train.epochs", "train.pretrain_epochs", "train.pretrain_lr", "train.seed"),
}
INFINITY_IS_VALID = {"evaluation.attack.norm", "regularizer.attack.norm"}
ENTRY_POINTS = [FinetuneConfig, EvaluateConfig]
BASE = ["--data.train", "x.parquet", "--data.val", "x.parquet"]  # of defaults, not of demo.yaml


def numeric_options(
    section: type, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Path, field and default of each option that takes numbers."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from numeric_options(hint, f"{name}.")
        elif re.search(r"\b(int|float)\b", str(hint)):
            yield name, field, getattr(section(), field.name)


def option(name: str, default: Any, number: str) -> str:
    """The option with the number; in a list it replaces the first number."""
    if isinstance(default, list):
        number = f"[{', '.join([number, *map(str, default[1:])])}]"
    return f"--{name}={number}"


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_every_numeric_option_has_a_range(cls: type[RunConfig]) -> None:
    fields = list(numeric_options(cls))
    assert len(fields) > 20
    for name, field, _ in fields:
        assert isinstance(field.metadata.get("range"), Range), name


def test_a_number_without_a_range_is_no_option() -> None:
    @dataclasses.dataclass
    class Careless(Section):
        rate: float | None = None

    with pytest.raises(TypeError, match=r"Careless\.rate"):
        Careless()


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_numbers_out_of_range_are_refused_in_one_line(
    cls: type[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {name for name, _, _ in numeric_options(EvaluateConfig)}
    for name, _, default in numeric_options(cls):
        if cls is FinetuneConfig and name in shared:
            continue
        valid = {"0"} if name in ZERO_IS_VALID else set()
        valid |= {".inf"} if name in INFINITY_IS_VALID else set()
        for number in {".nan", ".inf", "-.inf", "-1", "0"} - valid:
            with pytest.raises(SystemExit) as ended:
                parse.parse(cls, "", [*BASE, option(name, default, number)])
            error = capsys.readouterr().err
            assert ended.value.code == 2, (name, number)
            assert re.fullmatch(rf"error: {re.escape(name)} must be .*, got .*\n", error), error


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_valid_numbers_are_accepted(cls: type[RunConfig]) -> None:
    chosen = [(name, default) for name, _, default in numeric_options(cls)]
    zeros = [option(name, default, "0") for name, default in chosen if name in ZERO_IS_VALID]
    infinite = [
        option(name, default, ".inf") for name, default in chosen if name in INFINITY_IS_VALID
    ]
    config = parse.parse(cls, "", [*BASE, *zeros, *infinite])
    assert config.evaluation.attack.overshoot == 0
    assert config.evaluation.attack.norm == float("inf")


def test_help_shows_units_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse.parse(FinetuneConfig, "a command:\n\n    python finetune.py\n", ["--help-all"])
    text = capsys.readouterr().out
    assert "    python finetune.py\n" in text  # as it was written
    assert text.index("a command") < 200  # after a usage of a line or two
    assert "Path to a configuration file" not in text
    plain = " ".join(text.split())
    for name, _, _ in numeric_options(FinetuneConfig):
        described = plain[plain.index(f"--{name} ", 500) :].partition("(type:")[0]
        assert str(options_of(name).range) in described, name
    assert "[range: from 1 to 4096; unit: pixels]" in plain


def options_of(name: str) -> Any:
    section: Any = FinetuneConfig
    *path, last = name.split(".")
    for part in path:
        section = get_type_hints(section)[part]
    return options(section)[last]


def test_a_section_alone_names_its_option() -> None:
    with pytest.raises(OptionError, match=r"^overshoot must be at least 0, got -1"):
        AttackConfig(overshoot=-1)


def ignored(**changes: Any) -> list[str]:
    config = parse.parse(FinetuneConfig, "", [])
    for name, value in changes.items():
        setattr(config, name, value)
    return ignored_option_messages(config, "cuda", steps_per_epoch=60)


def test_the_demonstration_ignores_nothing() -> None:
    assert ignored() == []


def test_a_schedule_longer_than_the_run_prints_a_warning() -> None:
    train = TrainConfig(epochs=2)
    assert not ignored(train=train, schedule=ScheduleConfig(warmup=2))
    assert (
        "longer than the run's 2 epochs"
        in ignored(train=train, schedule=ScheduleConfig(warmup=3))[0]
    )
    by_steps = ScheduleConfig(unit="steps", milestones=[119, 120])
    (line,) = ignored(train=train, schedule=by_steps)
    assert "schedule.milestones 120: not reached in the run's 120 steps" in line


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ("--evaluation.attack.pruning_factor 2", "evaluation.attack.pruning_factor"),
        (
            "--regularizer.attack.candidate_search exhaustive "
            "--regularizer.attack.pruning_factor 2",
            "regularizer.attack.pruning_factor",
        ),
        (
            "--evaluation.attack.step_direction loss_gradient "
            "--evaluation.attack.candidate_search pruned --evaluation.attack.pruning_factor 2",
            "evaluation.attack.candidate_search evaluation.attack.pruning_factor",
        ),
        ("--schedule.kind cosine --schedule.gamma 0.1", "schedule.gamma"),
        ("--schedule.unit steps", "schedule.unit"),
        ("--schedule.unit steps --schedule.warmup 5", ""),
        ("--schedule.unit steps --schedule.milestones [5]", ""),
        ("--schedule.kind cosine --schedule.unit steps", "schedule.unit"),
        ("--runtime.tf32 true --runtime.device cpu", "runtime.tf32"),
        ("--runtime.tf32 true", ""),
        (
            "--regularizer.gradient one_step --regularizer.attack.max_iterations 9 "
            "--regularizer.attack.method superdeepfool --regularizer.attack.norm inf",
            "regularizer.attack.method regularizer.attack.max_iterations",
        ),
        ("--regularizer.lam 0 --regularizer.layers [1.*]", "regularizer.layers"),
        ("--regularizer.lam 0 --regularizer.gradient boundary", "regularizer.gradient"),
        ("--schedule.kind linear --schedule.milestones [1]", "schedule.milestones"),
        ("--schedule.gamma 0.1", "schedule.gamma"),
        ("--train.pretrain_epochs 0 --train.pretrain_lr 1", "train.pretrain_lr"),
        ("--data.crop_scale [0.5,1] --data.crop_ratio [1,1]", "data.crop_scale data.crop_ratio"),
        ('--objective.options {"a":1}', "objective.options"),
        ("--objective.method clean --regularizer.layers [1.*]", "regularizer.layers"),
        ("--objective.method parseval --regularizer.gradient boundary", "regularizer.gradient"),
        ("--objective.adversarial.eps 1", "objective.adversarial.eps"),
        ("--objective.adversarial.weight 1", "objective.adversarial.weight"),
        ("--objective.adversarial.direction rounded", "objective.adversarial.direction"),
        ("--evaluation.fgs.direction rounded", "evaluation.fgs.direction"),
        ("--evaluation.fgs.direction rounded --evaluation.fgs.search true", ""),
        ("--data.root x", "data.root"),
        ("--data.root x --data.val y.parquet", ""),
        ("--objective.parseval.beta 1", "objective.parseval.beta"),
        ("--objective.parseval.columns 1", "objective.parseval.columns"),
        ("--data.half_input true --runtime.precision bf16 --runtime.device cpu", "data.half_input"),
        ("--data.half_input true --runtime.precision bf16", ""),
        ("--data.hw_decoder_load 0.5 --runtime.device cpu", "data.hw_decoder_load"),
        ("--data.hw_decoder_load 0.5 --data.decoder cpu", "data.hw_decoder_load"),
        ("--data.hw_decoder_load 0.5 --data.decoder gpu", ""),
        ("--objective.method clean+parseval --objective.parseval.beta 1", ""),
        ("--schedule.milestones [8] --schedule.gamma 0.1", ""),
    ],
)
def test_options_without_effect_print_a_warning(argv: str, options: str) -> None:
    config = parse.parse(FinetuneConfig, "", argv.split())
    lines = ignored_option_messages(config, steps_per_epoch=60)
    assert [line.split()[0] for line in lines] == options.split()
    assert all(" has no effect: " in line for line in lines)


def test_a_users_method_may_read_every_option() -> None:
    config = parse.parse(FinetuneConfig, "", [])
    config.objective.method, config.objective.options = "my:Method", {"a": 1}
    config.objective.parseval.beta = 0.5
    assert ignored_option_messages(config) == []
