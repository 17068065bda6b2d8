"""The tests marked gpu, where pytest is installed."""

import importlib.util
import re

from gpu_checks.check import ROOT, Record, Setup, Skip
from gpu_checks.processes import start


def gpu_tests(setup: Setup, record: Record) -> None:
    """Run `pytest -m gpu`."""
    if not setup.on_gpu:
        raise Skip("the tests marked gpu need a GPU")
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    if not (ROOT / "tests").is_dir():
        raise Skip(f"no tests in {ROOT}")
    options = ("-m", "gpu", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT, ROOT / "tests")
    run = start(setup.folder / "pytest.log", "-m", "pytest", *options)
    output = run.wait(setup.process_seconds, expected=None)
    counts = {
        how: int(n) for n, how in re.findall(r"(\d+) (passed|failed|errors?|skipped)", output)
    }
    record.note("tests", ", ".join(f"{n} {how}" for how, n in counts.items()) or "none")
    record.at_least("tests that passed", counts.get("passed", 0), 1)
    record.equal("pytest's exit code", run.process.returncode, 0)
    if run.process.returncode:
        record.note("pytest's last lines", output[-2000:])
