"""The parser of the launchers and tools: how options may be written."""

import pytest

from pipeline.config import arguments


def parser() -> arguments.Parser:
    top = arguments.Parser()
    top.add_argument("--dry-run", action="store_true")
    commands = top.add_subparsers(dest="command")
    commands.add_parser("merge").add_argument("--num-images", type=int)
    top.add_argument("--old_name")
    return top


def test_an_option_is_read_with_hyphens_or_underscores() -> None:
    for argv in (
        ["--dry-run", "merge", "--num-images=3"],
        ["--dry_run", "merge", "--num_images=3"],
    ):
        parsed = parser().parse_args(argv)
        assert (parsed.dry_run, parsed.num_images) == (True, 3)
    assert parser().parse_args(["--old_name", "--a_b=c"[4:]]).old_name == "b=c"  # values stay
    assert parser().parse_args(["--old_name", "dry_run"]).old_name == "dry_run"


def test_an_unknown_option_is_named_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--dry_rum"])
    assert "no option --dry_rum; did you mean --dry-run?" in capsys.readouterr().err
