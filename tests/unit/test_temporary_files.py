"""Temporary files that killed processes leave."""

import os
from pathlib import Path

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
