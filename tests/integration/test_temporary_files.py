"""Temporary files of processes that are killed, and of other containers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import files
from pipeline.runtime.files import atomic_write, remove_abandoned
from tests.helpers.in_process import EVALUATE, call
from tests.helpers.runs import unused_pid
from tests.helpers.tiny import finished


def test_a_container_does_not_remove_files_of_another_with_the_same_host_name(
    tmp_path: Path,
) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.runtime import files\n"
        "Path(sys.argv[1], f'.x.tmp-{sys.argv[2]}-{files.SCOPE}').write_text('')"
    )
    container = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*container, "true"]).returncode:
        pytest.skip("needs unshare, and namespaces for users")
    argv = [sys.executable, "-c", script, tmp_path, str(unused_pid())]
    subprocess.run([*container, *argv], check=True)
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    subprocess.run(argv, check=True)
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_write_is_swept_by_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.runtime.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "x.parquet"
    subprocess.run([sys.executable, "-c", script, path], env=os.environ)
    assert [p.name.split(".tmp-")[0] for p in tmp_path.iterdir()] == [".x.parquet"]
    with atomic_write(path) as partial:
        partial.write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_a_run_sweeps_all_its_folders(tiny_copy: Path, tmp_path: Path) -> None:
    evaluate = (EVALUATE, "--evaluation.num_images", 10, "--output", tmp_path / "e")
    assert call(*evaluate).code == 0
    name = f".x.tmp-{unused_pid()}-{files.SCOPE}"
    results = tmp_path / "e" / "results" / "0-of-1"
    for folder in (
        tiny_copy,
        tiny_copy / "checkpoints",
        results.parent.parent,
        results,
        results / "examples",
    ):
        (folder / name).write_text("")
    finished(tiny_copy)
    assert call(*evaluate).code == 0
    assert not list(tmp_path.rglob(".*.tmp-*"))
