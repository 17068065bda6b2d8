"""`--help` of the entry points: a short page, pages of sections and options, all options."""

from collections.abc import Callable, Sequence

import pytest

from launchers import command_lines
from pipeline.config import EvaluateConfig, FinetuneConfig, RunConfig, help_pages, parse
from pipeline.config.checks import all_options, sections
from pipeline.config.text import nearest

Page = Callable[..., str]
ENTRY_POINTS = [FinetuneConfig, EvaluateConfig]


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("COLUMNS", "100")

    def read(cls: type[RunConfig], *argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse.parse(cls, "a description\n\n    with an example\n", argv)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return read


def options_on(text: str, cls: type[RunConfig]) -> list[str]:
    return [name for name in all_options(cls) if f"  --{name} " in text]


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_the_short_page(page: Page, cls: type[RunConfig]) -> None:
    text = page(cls, "--help")
    assert len(text.splitlines()) <= 60
    assert 10 <= len(options_on(text, cls)) <= 15
    assert "    with an example\n" in text
    for name in sections(cls):
        assert f"\n  {name} " in text
    assert f"{len(all_options(cls))} options" in text
    assert text == page(cls, "-h") == page(cls, "--dry_run", "true", "--help")


@pytest.mark.parametrize("cls", ENTRY_POINTS)
def test_all_options(page: Page, cls: type[RunConfig]) -> None:
    text = page(cls, "--help-all")
    assert options_on(text, cls) == list(all_options(cls))
    assert "    with an example\n" in text
    assert text == page(cls, "--help", "all")


@pytest.mark.parametrize("section", ["data", "evaluation", "evaluation.attack", "regularizer"])
def test_a_section(page: Page, section: str) -> None:
    text = page(FinetuneConfig, "--help", section)
    expected = [n for n in all_options(FinetuneConfig) if n.startswith(f"{section}.")]
    assert options_on(text, FinetuneConfig) == expected
    assert "example" not in text
    assert "(type: " in text
    assert text == page(FinetuneConfig, f"--help={section}", "--train.epochs", "no number")


def test_one_option(page: Page) -> None:
    text = page(EvaluateConfig, "--help", "evaluation.attack.norm")
    assert options_on(text, EvaluateConfig) == ["evaluation.attack.norm"]
    assert "[range: above 1, or inf]" in " ".join(text.split())
    assert options_on(page(EvaluateConfig, "--help", "shard"), EvaluateConfig) == ["shard"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], None),
        (["--train.epochs", "3"], None),
        (["--help"], ""),
        (["--help", "--train.epochs", "3"], ""),
        (["-h", "data"], "data"),
        (["--help=data"], "data"),
        (["--config", "x.yaml", "--help-all"], "all"),
    ],
)
def test_requested_page(argv: Sequence[str], expected: str | None) -> None:
    assert help_pages.requested_page(argv) == expected


def test_other_ranks_print_no_help(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert page(FinetuneConfig, "--help") == ""


def test_help_of_launchers(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_lines.chain_parser("a description")
    argv_and_options = {
        ("--help",): "--shard-time",
        ("--", "--help"): "--train.epochs",
        ("--", "--help", "optim"): "--optim.lr",
        ("--", "--train.epochs", "3", "--", "--help", "evaluation.fgs"): "--evaluation.fgs.search",
    }
    for argv, option in argv_and_options.items():
        with pytest.raises(SystemExit) as ended:
            command_lines.check(parser, argv, FinetuneConfig, EvaluateConfig)
        assert ended.value.code == 0
        assert f"  {option} " in capsys.readouterr().out, argv


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("objectiv.method", ["objective.method"]),
        ("epochs", ["train.epochs"]),
        ("fgs.search", ["evaluation.fgs.search"]),
        ("attack.norm", ["evaluation.attack.norm", "regularizer.attack.norm"]),
        ("optim.batch_size", ["train.batch_size"]),
        ("train.batch-size", ["train.batch_size"]),
        ("Train.Epochs", ["train.epochs"]),
        ("log.every", ["log.every_steps"]),
        ("zzz", []),
    ],
)
def test_nearest_options(word: str, expected: list[str]) -> None:
    assert nearest(word, all_options(FinetuneConfig)) == expected


def test_nearest_names() -> None:
    nets = ["resnet18", "resnet101", "resnet152", "vgg11", "squeezenet1_0", "squeezenet1_1"]
    assert nearest("resnet81", nets) == ["resnet18"]
    assert nearest("resnet1", nets) == ["resnet18", "resnet101", "resnet152"]
    assert nearest("squeezenet", nets) == ["squeezenet1_0", "squeezenet1_1"]
    assert nearest("dnn", ["deepfool", "ddn", "fmn"]) == ["ddn"]
    assert nearest("mobilenet", nets) == []
