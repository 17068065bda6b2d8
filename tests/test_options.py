"""Every numeric option refuses NaN, infinity and numbers out of its range in one line."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from pipeline import cli
from pipeline.config import (
    AttackConfig,
    EvaluateConfig,
    FinetuneConfig,
    RegularizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    warn_ignored,
)
from pipeline.config.rule import OptionError, Range, Section, options

# Stated here once more: options for which 0 or infinity is a valid value. -1 and NaN never are.
ZERO_IS_VALID = {
    *("num_examples", "data.mean", "evaluation.attack.overshoot", "evaluation.fgs.eps"),
    *("regularizer.lam", "regularizer.c", "regularizer.d", "regularizer.attack.overshoot"),
    *("objective.adversarial.weight", "objective.parseval.beta"),
    *("optim.lr", "optim.momentum", "optim.weight_decay"),
    *("schedule.warmup", "schedule.milestones", "log.panel_images"),
    *("train.epochs", "train.clean_epochs", "train.clean_lr", "train.seed"),
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


def words(name: str, default: Any, number: str) -> str:
    """The option with the number, in a list in place of the list's first."""
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
    for name, _, default in numeric_options(cls):
        valid = {"0"} if name in ZERO_IS_VALID else set()
        valid |= {".inf"} if name in INFINITY_IS_VALID else set()
        for number in {".nan", ".inf", "-.inf", "-1", "0"} - valid:
            with pytest.raises(SystemExit) as ended:
                cli.parse(cls, "", [*BASE, words(name, default, number)])
            error = capsys.readouterr().err
            assert ended.value.code == 2, (name, number)
            assert re.fullmatch(rf"error: {re.escape(name)} must be .*, got .*\n", error), error


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_numbers_stated_as_valid_are_taken(cls: type[RunConfig]) -> None:
    chosen = [(name, default) for name, _, default in numeric_options(cls)]
    zeros = [words(name, default, "0") for name, default in chosen if name in ZERO_IS_VALID]
    infinite = [
        words(name, default, ".inf") for name, default in chosen if name in INFINITY_IS_VALID
    ]
    config = cli.parse(cls, "", [*BASE, *zeros, *infinite])
    assert config.evaluation.attack.overshoot == 0
    assert config.evaluation.attack.norm == float("inf")


def test_help_shows_units_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(FinetuneConfig, "a command:\n\n    python finetune.py\n", ["--help"])
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


def test_errors_name_the_option_as_seen_from_where_it_is() -> None:
    with pytest.raises(OptionError, match=r"^overshoot must be at least 0, got -1"):
        AttackConfig(overshoot=-1)


def ignored(**changes: Any) -> list[str]:
    config = cli.parse(FinetuneConfig, "", [])
    for name, value in changes.items():
        setattr(config, name, value)
    return warn_ignored(config, "cuda", steps_per_epoch=60)


def test_the_demonstration_ignores_nothing() -> None:
    assert ignored() == []


def test_a_schedule_longer_than_the_run_is_told() -> None:
    train = TrainConfig(epochs=2)
    assert not ignored(train=train, schedule=ScheduleConfig(warmup=2))
    assert (
        "longer than the run's 2 epochs"
        in ignored(train=train, schedule=ScheduleConfig(warmup=3))[0]
    )
    by_steps = ScheduleConfig(unit="steps", milestones=[119, 120])
    (line,) = ignored(train=train, schedule=by_steps)
    assert "schedule.milestones 120: not reached in the run's 120 steps" in line


def test_options_without_effect_are_told() -> None:
    attack = AttackConfig(visit="all", safety=2)
    lines = ignored(
        regularizer=RegularizerConfig(attack=attack),
        schedule=ScheduleConfig(kind="cosine", gamma=0.1),
    )
    assert [line.split()[1] for line in lines] == ["regularizer.attack.safety", "schedule.gamma"]


def test_a_method_of_ones_own_may_read_every_option() -> None:
    config = cli.parse(FinetuneConfig, "", [])
    config.objective.method, config.objective.options = "my:Method", {"a": 1}
    config.objective.parseval.beta = 0.5
    assert warn_ignored(config) == []
