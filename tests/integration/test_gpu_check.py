"""tools/gpu_check.py: what it reports, that it continues after a failure, and its form on a CPU."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gpu_check
from gpu_checks.check import SMALL, Check, Record, Setup, Skip, run_in_new_process
from tests.helpers.runs import environment

CPU = torch.device("cpu")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(CPU, replace(SMALL, num_photos=12), tmp_path, time.monotonic() + 600)


def passes(setup: Setup, record: Record) -> None:
    """Passes."""
    record.at_most("small", 1.0, 2.0)
    record.tables["speed"] = [{"name": "a | b", "images_per_second": 12.5}]


def is_beyond(setup: Setup, record: Record) -> None:
    """Records a value beyond its tolerance."""
    record.at_most("not a number", float("nan"), 2.0)
    record.note("noted", 3)


def raises(setup: Setup, record: Record) -> None:
    """Records a value and raises."""
    record.note("before the error", 1)
    raise RuntimeError("out of order\nsecond line")


def skips(setup: Setup, record: Record) -> None:
    """Cannot run."""
    raise Skip("no device")


FAKES: dict[str, Check] = {"raises": raises, "beyond": is_beyond, "skips": skips, "passes": passes}


def results_of(folder: Path) -> dict[str, dict]:
    results = json.loads((folder / "gpu_check.json").read_text())
    assert results["machine"]["device"] == "cpu"
    assert results["machine"]["torch"] == torch.__version__.partition("+")[0]
    return {check["name"]: check for check in results["checks"]}


def call(folder: Path, *options: object) -> int:
    return gpu_check.main(["--device", "cpu", "--output", str(folder), *map(str, options)])


def test_it_continues_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", FAKES)
    assert call(tmp_path / "out") == 1
    checks = results_of(tmp_path / "out")
    expected = {"raises": "failed", "beyond": "failed", "skips": "skipped", "passes": "passed"}
    assert {name: check["status"] for name, check in checks.items()} == expected
    assert checks["raises"]["reason"] == "RuntimeError: out of order"
    assert "second line" in checks["raises"]["trace"]
    assert checks["raises"]["values"][0]["name"] == "before the error"
    assert checks["beyond"]["reason"] == "beyond the tolerance: not a number"
    assert checks["beyond"]["values"][0]["value"] == "nan"  # JSON has no NaN
    assert checks["passes"]["tables"]["speed"][0]["images_per_second"] == 12.5
    text = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "# GPU check: 1 passed, 2 failed, 1 skipped" in text
    assert "| skips | skipped | 0.0 | no device |" in text
    assert "| not a number | nan | at most 2 | **failed** |" in text
    assert "| small | 1 | at most 2 |  |" in text
    assert "| a \\| b | 12.5 |" in text
    assert "1 passed, 2 failed, 1 skipped" in capsys.readouterr().out


def test_the_exit_status_without_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", FAKES)
    assert call(tmp_path, "--only", "passes", "skips") == 0
    assert list(results_of(tmp_path)) == ["skips", "passes"]  # in the order of the list


def test_no_check_starts_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", FAKES)
    assert call(tmp_path, "--minutes", 0) == 1
    checks = results_of(tmp_path)
    assert {check["status"] for check in checks.values()} == {"skipped"}
    assert {check["reason"] for check in checks.values()} == {"the time of --minutes is over"}


def test_the_files_name_a_check_that_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(setup: Setup, record: Record) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(gpu_check, "CHECKS", {"passes": passes, "ends": end})
    with pytest.raises(SystemExit, match="9"):
        call(tmp_path)
    statuses = {name: check["status"] for name, check in results_of(tmp_path).items()}
    assert statuses == {"passes": "passed", "ends": "running"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "decodng"], "no decodng; use gpu_tests, decoding"),
        (["--minutes", "-1"], "--minutes must be"),
        (["--output", "FILE"], "give another --output"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--device", "cpu", "--output", str(tmp_path / "out"), *options])
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 1
    assert message in errors[-1]


def test_the_list_describes_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(gpu_check.CHECKS)
    assert all(line.endswith(".") and len(line.split()) > 3 for line in lines)


def die(setup: Setup, record: Record) -> None:
    signal.raise_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_check_in_a_process_of_its_own_may_crash(setup: Setup) -> None:
    outcome = run_in_new_process("dies", die, setup)
    assert (outcome.status, outcome.reason) == ("failed", "the process of this check crashed")
    assert run_in_new_process("passes", passes, setup).status == "passed"


def command(folder: Path, *options: object) -> list[str]:
    script = str(gpu_check.__file__)
    return [sys.executable, script, "--device", "cpu", "--output", str(folder), *map(str, options)]


@pytest.mark.slow
def test_a_check_that_hangs_ends_the_program(tmp_path: Path) -> None:
    lines = (
        "import time, gpu_check",
        "def hangs(setup, record):",
        "    time.sleep(200)",
        "gpu_check.CHECKS, gpu_check.HANG_MINUTES = {'hangs': hangs}, 0",
        f"gpu_check.main(['--device', 'cpu', '--minutes', '0.1', '--output', {str(tmp_path)!r}])",
    )
    tools = str(Path(gpu_check.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tools}"},
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    assert "in hangs" in done.stderr  # where it was
    assert results_of(tmp_path)["hangs"]["status"] == "running"


@pytest.mark.slow
def test_the_form_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    checks = results_of(tmp_path)
    assert list(checks) == list(gpu_check.CHECKS)
    skipped = {name for name, check in checks.items() if check["status"] == "skipped"}
    gpu_only = {"gpu_tests", "half_input", "waits", "busy"}
    assert skipped == {*gpu_only, "equal_weights", "killed_rank"}
    assert all(check["reason"] for name, check in checks.items() if name in skipped)
    assert all(check["values"] for name, check in checks.items() if name not in skipped)


@pytest.mark.slow
def test_two_ranks_on_a_cpu(tmp_path: Path) -> None:
    options = ("--multi", "--only", "equal_weights", "killed_rank")
    done = subprocess.run(
        command(tmp_path, *options), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    values = {v["name"]: v["value"] for v in results_of(tmp_path)["killed_rank"]["values"]}
    assert values["exit codes"] == "3"
