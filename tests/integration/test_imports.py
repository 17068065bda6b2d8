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
