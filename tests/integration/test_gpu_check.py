"""tools/gpu_check.py: what it reports, that it continues after a failure, and its form on a CPU."""

import json
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

import gpu_check
from gpu_checks import against_cpu, evaluation, pixels, profiling, runs
from gpu_checks.check import SMALL, Check, Record, Setup, Skip, run_check, run_in_new_process
from gpu_checks.images import photos, photos_of_kind
from gpu_checks.nets import tiny
from gpu_checks.processes import ProcessFailed, start
from pipeline.evaluation.samples import Samples
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
    page = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "# GPU check: 1 passed, 2 failed, 1 skipped" in page
    assert "| skips | skipped | 0.0 | no device |" in page
    assert "| not a number | nan | at most 2 | **failed** |" in page
    assert "| small | 1 | at most 2 |  |" in page
    assert "| a \\| b | 12.5 |" in page
    assert "1 passed, 2 failed, 1 skipped" in capsys.readouterr().out


def test_the_exit_status_without_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", FAKES)
    assert call(tmp_path, "--only", "passes", "skips") == 0
    assert list(results_of(tmp_path)) == ["skips", "passes"]  # in the order of the list


def test_no_check_starts_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", FAKES)
    assert call(tmp_path, "--minutes", 0) == 0
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


def test_photos_are_of_the_kinds_that_their_names_say(setup: Setup) -> None:
    index = photos(setup)
    assert len(index) == 12
    sizes = {(int(w), int(h)) for w, h in zip(index.width, index.height, strict=True)}
    assert len(sizes) == 5
    assert kind_of(index.root / index.files[0]) == ("RGB", 2, False)
    expected = {"4:4:4": ("RGB", 0, False), "progressive": ("RGB", 2, True)}
    expected |= {"grey": ("L", -1, False), "CMYK": ("CMYK", -1, False)}
    for kind, properties in expected.items():
        index = photos_of_kind(setup, kind)
        assert kind_of(index.root / index.files[0]) == properties, kind


def kind_of(path: Path) -> tuple[str, int, bool]:
    """Mode, subsampling (2: 4:2:0; -1: not that of a colour image), whether progressive."""
    with Image.open(path) as image:
        subsampling = JpegImagePlugin.get_sampling(image)
        return image.mode, subsampling, bool(image.info.get("progressive"))


def test_other_pixels_are_noticed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_check("decoding", pixels.decoding, setup).status == "passed"
    load = pixels.load

    def swapped(*arguments: object) -> list:
        batches = load(*arguments)
        return [replace(batch, images=batch.images.flip(1)) for batch in batches]

    monkeypatch.setattr(pixels, "load", swapped)  # BGR in place of RGB
    outcome = run_check("decoding", pixels.decoding, setup)
    assert any(name.startswith("4:2:0, centre crops") for name in outcome.record.failures)
    assert not any(name.startswith("grey") for name in outcome.record.failures)


def test_other_logits_are_noticed() -> None:
    torch.manual_seed(0)
    net, images = tiny(10).eval(), torch.randn(2, 3, 32, 32)
    expected = against_cpu.NetAndImages(tiny(10).eval().double(), images.double())
    expected.net.load_state_dict(net.state_dict())
    record = Record()
    against_cpu.compare_logits(record, against_cpu.NetAndImages(net, images), expected)
    assert record.failures == []
    rounded = images.bfloat16().float()
    against_cpu.compare_logits(record, against_cpu.NetAndImages(net, rounded), expected)
    assert record.failures == ["logits: largest relative difference"]


def test_other_samples_are_noticed() -> None:
    columns = {"row": [0, 1], "perturbation_norm": [1.0, 2.0]}
    samples = Samples.from_dict(columns, 0)
    changed = Samples.from_dict(columns | {"perturbation_norm": [1.0, 2.0 + 1e-15]}, 0)
    record = Record()
    evaluation.compare(record, "again", samples, samples, required=True)
    assert record.failures == []
    evaluation.compare(record, "again", changed, samples, required=False)
    assert record.failures == []
    evaluation.compare(record, "again", changed, samples, required=True)
    assert record.failures == ["again: columns that differ"]
    assert record.values[-4].value == ["perturbation_norm"]
    np.testing.assert_equal(record.values[-3].value, 1)


def test_losses_and_the_loss_scale_are_read_from_the_metrics(setup: Setup) -> None:
    setup = replace(setup, size=replace(SMALL, precisions=("bf16", "fp16")))
    losses = {"bf16": [2.0, float("nan")], "fp16": [2.0, 1.0]}
    for precision, values in losses.items():
        folder = runs.run_folder(setup, precision)
        folder.mkdir(parents=True)
        (folder / "weights.pth").touch()  # the run has ended
        rows = [{"train/loss": v, "train/images_per_second": 5, "step": 1} for v in values]
        if precision == "fp16":
            rows = [row | {"train/loss_scale": 1024.0} for row in rows]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    outcome = run_check("training", runs.training, setup)
    assert outcome.record.failures == ["bf16: losses finite"]
    values = {value.name: value.value for value in outcome.record.values}
    assert values["fp16: first and last loss scale"] == "1024, 1024"


def test_a_process_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"exit code 7, not 0: (.|\n)*the reason"):
        start(tmp_path / "log", "-c", "print('the reason'); raise SystemExit(7)").wait()
    with pytest.raises(ProcessFailed, match=r"no end within 0\.2 s"):
        start(tmp_path / "log", "-c", "import time; time.sleep(60)").wait(seconds=0.2)


def test_waits_are_counted_by_the_projects_line() -> None:
    with profiling.counted_warnings() as sites:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert sites == {"elsewhere": 3}  # this file is not in pipeline/


def test_overlapping_kernels_count_once() -> None:
    assert profiling.union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert profiling.union([]) == 0


def command(folder: Path, *options: object) -> list[str]:
    script = str(gpu_check.__file__)
    return [sys.executable, script, "--device", "cpu", "--output", str(folder), *map(str, options)]


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
