"""Every earlier spelling of an option is read: in YAML, on the command line, in a checkpoint."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers import command_lines, options
from pipeline.config import (
    AttackConfig,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    FinetuneConfig,
    RunConfig,
    RuntimeConfig,
    aliases,
    parse,
)
from pipeline.config.aliases import ALIASES, LAUNCHER_ALIASES, Alias, translate_argv
from pipeline.config.checks import sections
from pipeline.errors import UserError
from pipeline.evaluation.protocol import evaluation_protocol, preprocessing_of
from pipeline.training import checkpoint

# Values, not the default alone, for options whose values were not renamed.
VALUES: dict[str, list[Any]] = {
    "pruning_factor": [1.5],
    "crop_scale": [[0.5, 0.75]],
    "crop_ratio": [[0.5, 1.5]],
    "crop_size": [20],
    "resize_size": [300],
    "hflip": [True, False],
    "num_threads": [3],
    "max_grad_norm": [2.0],
    "gradient_accumulation_steps": [5],
    "pretrain_epochs": [4],
    "pretrain_lr": [0.25],
    "keep_last": [7],
    "collective_timeout": [77],
}


def places(section: type, prefix: str = "") -> Iterator[tuple[str, Alias]]:
    """Each section with aliases in it, as a path that ends with a dot, and each alias."""
    yield from ((prefix, alias) for alias in ALIASES if alias.section == section.__name__)
    for name, inner in sections(section).items():
        yield from places(inner, f"{prefix}{name}.")


def pairs(prefix: str, alias: Alias) -> list[tuple[str, Any, str, Any]]:
    """Earlier name and value, and those of now."""
    values = list(alias.values.items()) or [(value, value) for value in VALUES[alias.new]]
    return [(prefix + alias.old, old, prefix + alias.new, new) for old, new in values]


def cases(cls: type[RunConfig]) -> list[tuple[str, Any, str, Any]]:
    return [case for place in places(cls) for case in pairs(*place)]


CASES = [(cls, *case) for cls in (FinetuneConfig, EvaluateConfig) for case in cases(cls)]
ALL = pytest.mark.parametrize(("cls", "old", "old_value", "new", "value"), CASES)
OF_TRAINING = pytest.mark.parametrize(("old", "old_value", "new", "value"), cases(FinetuneConfig))


@pytest.fixture(autouse=True)
def _no_warning_printed_yet() -> None:
    aliases._printed.clear()


@pytest.fixture(scope="module")
def demo() -> FinetuneConfig:
    return parse.parse(FinetuneConfig, "", [])


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def text_of(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def option(config: RunConfig, path: str) -> Any:
    return parse.flatten(parse.to_dict(config))[path]


def warning(old: str, old_value: Any, new: str, value: Any) -> str:
    if old_value == value:
        return f"{old} is now {new}"
    return f"{old} {old_value} is now {new} {value}"


def test_every_alias_has_a_place() -> None:
    reached = [alias for _, alias in places(FinetuneConfig)]
    assert all(alias in reached for alias in ALIASES)


@ALL
def test_yaml(
    cls: type[RunConfig],
    old: str,
    old_value: Any,
    new: str,
    value: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "earlier.yaml"
    path.write_text(yaml.safe_dump(nested(old, old_value)))
    assert option(parse.parse(cls, "", ["--config", str(path)]), new) == value
    assert capsys.readouterr().err == f"warning: {path}: {warning(old, old_value, new, value)}\n"


@OF_TRAINING
def test_command_line(
    old: str, old_value: Any, new: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text, new_text = text_of(old_value), text_of(value)
    line = warning(f"--{old}", text, f"--{new}", new_text)
    two_words = translate_argv(FinetuneConfig, [f"--{old}", text])
    assert two_words == ([f"--{new}", new_text], [line])
    assert option(parse.parse(FinetuneConfig, "", [f"--{old}={text}"]), new) == value
    assert capsys.readouterr().err == f"warning: {line}\n"


def test_a_process_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    parse.parse(EvaluateConfig, "", ["--data.flip", "true"])
    parse.parse(EvaluateConfig, "", ["--data.flip", "true", "--data.threads", "1"])
    assert capsys.readouterr().err == (
        "warning: --data.flip is now --data.hflip\n"
        "warning: --data.threads is now --data.num_threads\n"
    )


def test_an_element_is_appended() -> None:
    argv = ["--data.area+=1", "--data.aspect+", "2"]
    translated = ["--data.crop_scale+=1", "--data.crop_ratio+", "2"]
    assert translate_argv(EvaluateConfig, argv).values == translated


@OF_TRAINING
def test_stored_checkpoint(
    old: str,
    old_value: Any,
    new: str,
    value: Any,
    demo: FinetuneConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = parse.parse(FinetuneConfig, "", [f"--{new}={text_of(value)}"])
    stored = parse.to_dict(config)
    section: Any = stored
    *path, name = new.split(".")
    for part in path:
        section = section[part]
    del section[name]
    section[old.rpartition(".")[2]] = old_value
    state = {"model": {}, "optimizer": {}, "scaler": {}, "config": stored, "step": 1}
    state |= {"history": [], "seconds": 0.0, "index": "abc"}
    file = tmp_path / "step-000000001.pt"
    checkpoint.write(file, {"version": checkpoint.VERSION, **state})
    stored_state = checkpoint.load(file)
    checkpoint.check(file, stored_state, config, "abc")
    assert capsys.readouterr().err == ""  # the user did not write it
    free = any(new == name or new.startswith(f"{name}.") for name in checkpoint.CHANGEABLE)
    if option(demo, new) != value and not free:
        with pytest.raises(UserError, match=re.escape(f"{new}: {value} -> ")):
            checkpoint.check(file, stored_state, demo, "abc")


def test_runs_of_earlier_versions_took_the_rounded_direction_of_fgs() -> None:
    """They did not record it; where FGS was not used, the direction makes no difference."""
    for argv, name in (
        (["--evaluation.fgs.search", "true"], "evaluation.fgs.direction"),
        (["--objective.method", "adversarial_2"], "objective.adversarial.direction"),
    ):
        exact = parse.parse(FinetuneConfig, "", argv)
        rounded = parse.parse(FinetuneConfig, "", [*argv, f"--{name}", "rounded"])
        stored = parse.to_dict(rounded)
        assert parse.stored_differences(stored, exact, ()) == [f"{name}: rounded -> exact"]
        for section in (stored["evaluation"]["fgs"], stored["objective"]["adversarial"]):
            del section["direction"]
        assert parse.stored_differences(stored, exact, ()) == [f"{name}: rounded -> exact"]
        assert parse.stored_differences(stored, rounded, ()) == []
    without = parse.to_dict(FinetuneConfig())
    del without["evaluation"]["fgs"]["direction"]
    assert parse.stored_differences(without, FinetuneConfig(), ()) == []


def test_a_whole_section_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse.parse(FinetuneConfig, "", ["--regularizer.attack", "{classes: every}"])
    assert config.regularizer.attack.target_class == "reselect"
    assert "regularizer.attack.classes every is now" in capsys.readouterr().err


def test_both_names_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("data: {flip: true, hflip: false}")
    with pytest.raises(SystemExit):
        parse.parse(FinetuneConfig, "", ["--config", str(path)])
    assert capsys.readouterr().err == (
        f"error: {path}: data.flip is the earlier name of data.hflip; give one of them\n"
    )


def test_a_wrong_value_is_reported_under_the_new_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse.parse(EvaluateConfig, "", ["--evaluation.attack.classes", "fist"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: evaluation.attack.target_class must be reselect or fixed")


def test_other_ranks_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    parse.parse(FinetuneConfig, "", ["--data.flip", "true"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("old", "new"), LAUNCHER_ALIASES.items())
def test_options_of_launchers(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_lines.finetune_parser("")
    command_lines.check(parser, [old, "7", "--", "--data.flip", "true"], FinetuneConfig)
    for argv in ([old, "7"], [f"{old}=7"]):
        aliases._printed.clear()
        resources = options.resources(parser.parse_args(argv))
        assert getattr(resources, new.removeprefix("--").replace("-", "_")) == 7
        assert capsys.readouterr().err == f"warning: {old} is now {new}\n"
    assert old not in parser.format_help()


def test_stored_protocols_keep_their_first_names() -> None:
    attack = AttackConfig(
        target_class="fixed",
        candidate_search="pruned",
        linearize_at="overshot",
        step_direction="loss_gradient",
    )
    protocol = evaluation_protocol(EvaluationConfig(attack=attack), RuntimeConfig(), 10).to_dict()
    assert protocol["classes"] == "first"
    assert protocol["visit"] == "lazy, safety 1.15"
    assert protocol["direction"] == "gradient of the cross-entropy"
    assert protocol["linearised_at"] == "the point where the class was tested, with overshoot"
    stored = preprocessing_of(DataConfig(crop_size=20, resize_size=30), "cpu").to_dict()
    assert (stored["crop"], stored["resize"]) == (20, 30)
    default = evaluation_protocol(EvaluationConfig(), RuntimeConfig(), 10)
    assert "direction" not in default.to_dict()


def test_an_option_before_the_separator(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_lines.check(
            command_lines.finetune_parser(""), ["--data.flip", "true"], FinetuneConfig
        )
    assert "--data.flip belongs to pipeline/finetune.py: put it after --" in capsys.readouterr().err
