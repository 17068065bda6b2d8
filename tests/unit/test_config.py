"""Configurations: YAML files, the command line, help."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipeline.config import (
    CONFIGS,
    EvaluateConfig,
    FinetuneConfig,
    parse,
)
from pipeline.config.text import did_you_mean_file, flatten, read_yaml
from pipeline.errors import UserError
from pipeline.runtime import config_file
from reproduction.experiments import EXPERIMENTS

NOBODY = 65534  # a user without rights


@contextmanager
def unlisted_folder() -> Iterator[Path]:
    """An empty folder that may be entered, and not be listed; root may list any folder."""
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        user = os.geteuid()
        os.chmod(name, 0o711 if user == 0 else 0o311)
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)
            os.chmod(name, 0o700)


def test_a_file_that_is_not_in_a_folder_without_a_list() -> None:
    with unlisted_folder() as folder:
        with pytest.raises(PermissionError):
            list(folder.iterdir())
        with pytest.raises(UserError, match=r"^--config: no file .*/demo\.yml$"):
            read_yaml(folder / "demo.yml")
        hint = did_you_mean_file(folder / "demo.yml", [folder], ["demo.yaml"])
    assert hint == "; did you mean demo.yaml?"


def test_every_shipped_configuration_is_valid() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    wanted = {"demo", "imagenet_robust_resnet18"}
    wanted |= {*EXPERIMENTS, *(Path(e.config).stem for e in EXPERIMENTS.values())}
    assert wanted == {path.stem for path in paths}
    for path in paths:
        config = parse.parse(FinetuneConfig, "", ["--config", str(path)])
        assert config.output == f"runs/{path.stem}"
        assert parse.parse(EvaluateConfig, "", ["--config", str(path)]).model == config.model


def test_command_line_wins_over_yaml_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 5e-4, momentum: 0.5}\n")
    config = parse.parse(FinetuneConfig, "", ["--config", str(path), "--optim.momentum", "0.7"])
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (5e-4, 0.7, 5e-4)


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = parse.parse(FinetuneConfig, "", ["--data.mean", "[0.5]", "--output", "x"])
    config_file.save(config, tmp_path / "config.yaml")
    assert parse.parse(FinetuneConfig, "", ["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {nam: x}", "nam"),
        ("optim: {lr: fast}", "optim.lr"),
        ("train: {batch_size: 0}", "train.batch_size must be at least 1, got 0"),
        ("data: {mean: [0.5, 0.5]}", "data.mean must be 3 numbers"),
        ("model: [", "bad.yaml, line 1: no valid YAML"),
        (
            "regularizer: {attack: {num_candidates: 1}}",
            "bad.yaml: regularizer.attack.num_candidates must be at least 2, got 1",
        ),
    ],
)
def test_mistakes_in_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse.parse(FinetuneConfig, "", ["--config", str(path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse.parse(FinetuneConfig, "text", ["--help-all"])
    text = capsys.readouterr().out
    for option in parse.flatten(parse.to_dict(FinetuneConfig())):
        assert f"--{option} " in text, option
    described = text[text.index("options:") :]
    assert described.count("default:") >= len(parse.flatten(parse.to_dict(FinetuneConfig())))
    assert "in pixels" in described


def test_yaml_of_every_default_is_plain(tmp_path: Path) -> None:
    config_file.save(FinetuneConfig(), tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["regularizer"]["c"] == 500


def test_keys_of_a_dictionary_may_be_numbers() -> None:
    """Such as weights of classes, in the options of a user's method."""
    assert flatten({"options": {"weights": {0: 1.0, 3: 2.0}}}) == {
        "options.weights.0": 1.0,
        "options.weights.3": 2.0,
    }
