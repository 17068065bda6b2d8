"""Temporary files that killed processes leave."""

import os
from pathlib import Path

import pytest

from pipeline.runtime import files
from pipeline.runtime.files import remove_abandoned
from tests.helpers.runs import unused_pid


def test_temporary_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    scope, dead = files.SCOPE, unused_pid()
    old = {f".best.pt.tmp-{dead}-{scope}", f".a b.parquet.tmp-{dead}-{scope}", ".x.tar.tmp-1-far"}
    kept = {
        f".best.pt.tmp-{os.getpid()}-{scope}",  # of a process that runs
        ".best.pt.tmp-1-far",  # of another machine, of today
        f".best.pt.{dead}",
        f"best.pt.tmp-{dead}-{scope}",
        ".notes.tmp-old",
        "best.pt",
    }
    for name in old | kept:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".x.tar.tmp-1-far", (0, 0))
    folder = tmp_path / f".folder.tmp-{dead}-{scope}"
    folder.mkdir()
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name}
    remove_abandoned(tmp_path / "nowhere")


def test_a_file_that_another_process_has_created_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with files.atomic_create(path) as partial:
        partial.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["x.db"]


@pytest.mark.parametrize("other", ["", "theirs"])
def test_a_file_system_without_links(
    tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with files.atomic_create(tmp_path / "x.db") as partial:
        partial.write_text("mine")
        if other:
            (tmp_path / "x.db").write_text(other)
    assert (tmp_path / "x.db").read_text() == (other or "mine")
    assert os.listdir(tmp_path) == ["x.db"]


def test_the_journal_of_an_abandoned_database_is_removed(tmp_path: Path) -> None:
    names = [f".x.db.tmp-{unused_pid()}-{files.SCOPE}{suffix}" for suffix in ("", "-journal")]
    for name in names:
        (tmp_path / name).touch()
    files.remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == []
