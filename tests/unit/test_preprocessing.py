"""data.preprocessing: auto, resolved for nets of timm and for torchvision's weights by name."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchers import finetune
from pipeline.config import EvaluateConfig, FinetuneConfig, RunConfig, parse
from pipeline.errors import UserError
from pipeline.models import timm_nets
from pipeline.models.preprocessing import preprocessing_advice, resolve_preprocessing
from pipeline.models.published import PublishedPreprocessing
from pipeline.runtime import config_file

AUTO = ("--data.val", "x.parquet", "--data.preprocessing", "auto")
TORCHVISION = (*AUTO, "--model.name", "efficientnet_b3", "--model.weights", "DEFAULT")
NAMES = ("mean", "std", "crop_size", "resize_size", "interpolation")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def resolved(*argv: object) -> RunConfig:
    return resolve_preprocessing(parse.parse(EvaluateConfig, "", [*map(str, argv)]))


def values(config: RunConfig) -> tuple[Any, ...]:
    return tuple(getattr(config.data, name) for name in NAMES)


def test_the_default_changes_nothing() -> None:
    config = parse.parse(EvaluateConfig, "", ["--model.name", "resnet18"])
    assert resolve_preprocessing(config) is config


def test_weights_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(*TORCHVISION)
    assert config.data.preprocessing == "options"
    assert values(config) == (*IMAGENET, 300, 320, "bicubic")
    assert preprocessing_advice(config.model, config.data) == ""
    assert capsys.readouterr().out == (
        "data.preprocessing auto, efficientnet_b3 by torchvision's DEFAULT: "
        "mean [0.485,0.456,0.406], std [0.229,0.224,0.225], crop_size 300, resize_size 320, "
        "interpolation bicubic\n"
    )


def test_the_weights_need_not_be_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(*AUTO, "--model.name", "resnet50", "--model.weights", "IMAGENET1K_V2")
    assert values(config)[2:] == (224, 232, "bilinear")


def test_options_that_are_set_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {interpolation: bilinear, crop: 150}\n")  # an earlier name
    config = resolved("--config", path, *TORCHVISION, "--data.std=[1,1,1]")
    assert values(config) == (IMAGENET[0], [1, 1, 1], 150, 160, "bilinear")
    printed = capsys.readouterr().out
    assert "DEFAULT: mean [0.485,0.456,0.406], resize_size 160; set by options: std " in printed
    section = '{"crop_size": 224, "resize_size": 256}'  # equal to the defaults
    assert values(resolved(*TORCHVISION, "--data", section))[2:] == (224, 256, "bicubic")


def test_the_stored_configuration_has_the_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolved(*TORCHVISION, "--output", "x")
    config_file.save(config, tmp_path / "config.yaml")
    stored = parse.parse(EvaluateConfig, "", ["--config", str(tmp_path / "config.yaml")])
    assert stored == config
    assert resolve_preprocessing(stored) is stored
    capsys.readouterr()
    again = resolved("--config", tmp_path / "config.yaml", "--data.preprocessing", "auto")
    assert values(again) == values(config)
    assert "data.preprocessing auto has no effect: all of its" in capsys.readouterr().out


def test_launchers_store_the_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The jobs read every option from a YAML file, where none is left for auto."""
    argv = [*TORCHVISION, "--data.train", "x.parquet", "--output", str(tmp_path)]
    _, configs = finetune.parse_configs([["data.crop_size", "150", "300"]], argv)
    assert [values(config)[2:] for config in configs] == [
        (150, 160, "bicubic"),
        (300, 320, "bicubic"),
    ]
    assert {config.data.preprocessing for config in configs} == {"options"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--model.weights", "w.pth"),
            r"preprocessing of resnet18 with w\.pth is not known; it is",
        ),
        ((), r"preprocessing of resnet18 with random weights is not known"),
        (("--model.weights", "IMAGENET9"), r"IMAGENET9 is neither a file nor the name"),
    ],
)
def test_unknown_preprocessing(options: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(*AUTO, "--model.name", "resnet18", *options)


def test_values_that_do_not_fit_the_options() -> None:
    weights = ("--model.name", "resnet18", "--model.weights", "DEFAULT")
    grey = ("--data.channels", 1, "--data.mean", "[0.5]", "--data.std", "[0.2]")
    with pytest.raises(UserError, match=r"takes images of 3 channels, and data\.channels is 1"):
        resolved(*AUTO, *weights, *grey)
    with pytest.raises(UserError, match=r"auto: data\.resize_size must be at least crop_size \(29"):
        # 299 pixels by the weights
        resolved(
            *AUTO,
            *("--model.name", "inception_v3", "--model.weights", "DEFAULT"),
            *("--data.resize_size", 256),
        )


def test_what_the_loader_lacks_is_stated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published = PublishedPreprocessing(
        crop_size=240,
        crop_pct=1.1,
        crop_mode="squash",
        interpolation="lanczos",
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    monkeypatch.setattr(timm_nets, "preprocessing", lambda _: published)
    config = resolved(*AUTO, "--model.name", "timm:some_net")
    assert values(config) == ([0.5] * 3, [0.5] * 3, 240, 240, "bicubic")
    lines = capsys.readouterr().err.splitlines()
    beginning = "warning: data.preprocessing auto: timm:some_net was trained with what is not "
    assert len(lines) == 3
    assert all(line.startswith(beginning) for line in lines)
    for line, word in zip(lines, ("interpolation lanczos", "crop_pct 1.1", "squash"), strict=True):
        assert word in line


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs the package timm (extra timm)"
)
def test_nets_of_timm(capsys: pytest.CaptureFixture[str]) -> None:
    def of(name: str, *options: object) -> RunConfig:
        return resolved(*AUTO, "--model.name", f"timm:{name}", *options)

    config = of("convnext_atto.d2_in1k", "--model.weights", "w.pth")
    assert values(config) == (*IMAGENET, 224, 256, "bicubic")
    assert capsys.readouterr().err == ""
    half = [0.5] * 3
    assert values(of("vit_tiny_patch16_224")) == (half, half, 224, 248, "bicubic")
    assert values(of("vit_tiny_patch16_224", "--data.crop_size", 64))[2:4] == (64, 71)
    pretrained = parse.parse(
        FinetuneConfig, "", ["--model.name", "timm:resnet18", "--model.weights", "pretrained"]
    )
    advice = preprocessing_advice(pretrained.model, pretrained.data)
    assert advice.startswith("the weights pretrained were trained with --data.resize_size ")


def test_images_that_are_not_square_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tall = SimpleNamespace(input_size=(3, 256, 192))
    monkeypatch.setattr(timm_nets, "_published_config", lambda _: tall)
    with pytest.raises(UserError, match=r"timm:tall takes images of 256 x 192 pixels; only square"):
        resolved(*AUTO, "--model.name", "timm:tall")


def test_sizes_are_those_of_timm() -> None:
    def resize(size: int, crop_pct: float, used: int | None = None) -> int:
        published = PublishedPreprocessing(
            crop_size=size, crop_pct=crop_pct, interpolation="bicubic", mean=[], std=[]
        )
        return published.data_options(used)["resize_size"]

    assert resize(224, 0.9) == 248
    assert resize(224, 0.875) == 256
    assert resize(288, 0.95) == 303
    assert resize(224, 224 / 232) == 232
    assert resize(224, 224 / 232, used=112) == 116
