"""What an entry point imports before it has read its options, and what only when needed."""

import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT, environment


@pytest.mark.parametrize(
    "script", ["pipeline/finetune.py", "pipeline/evaluate.py", "launchers/finetune.py"]
)
def test_a_misspelt_option_is_refused_before_torch_is_imported(script: str) -> None:
    lines = (
        f"import runpy, sys; sys.argv = [{script!r}, '--optim.lrr', '1']",
        *("try:", f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"),
        *("except SystemExit as end:", "    print(end.code, 'torch' in sys.modules)"),
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "2 False", done.stdout + done.stderr


def test_what_takes_long_to_import_is_imported_where_it_is_needed() -> None:
    script = (
        "import sys, pipeline.finetune, pipeline.evaluate\n"
        "print([name for name in ('torchvision', 'matplotlib', 'scipy', 'torch._dynamo') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    script = "import sys, launchers.jobs; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("pipeline/finetune.py", "--help"),
        ("pipeline/evaluate.py", "--help", "data"),
        ("launchers/chain.py", "--help"),
        ("launchers/evaluate.py", "--", "--help-all"),
        ("tools/report.py", "table", "--help"),
        ("tools/board.py", "--help"),
        ("tools/benchmark.py", "--help"),
    ],
)
def test_help_is_shown_before_slow_imports(argv: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pipeline.config" in modules
    assert modules.isdisjoint({"torch", "nvidia.dali", "torchvision", "submitit", "matplotlib"})
