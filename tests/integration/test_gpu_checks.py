"""The checks of tools/gpu_check.py: their data, and that they notice what they are to notice."""

import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from gpu_checks import against_cpu, evaluation, page, pixels, profiling, ranks, runs
from gpu_checks.check import SMALL, Record, Setup, Skip, run_check
from gpu_checks.images import photos, photos_of_kind
from gpu_checks.nets import tiny
from gpu_checks.processes import ProcessFailed, start
from pipeline.evaluation.samples import Samples

CPU = torch.device("cpu")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(CPU, replace(SMALL, num_photos=12), tmp_path, time.monotonic() + 600)


def test_the_page_states_gpu_and_driver(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    program = setup.folder / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '580.65.06\\n580.65.06\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(setup.folder))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 140 * 2**30))
    about = page.describe_machine(replace(setup, device=torch.device("cuda", 0)))
    expected = {"device": "NVIDIA H200", "gpus": 2, "compute capability": "9.0"}
    expected |= {"memory, GiB": 140.0, "driver": "580.65.06", "size": "small"}
    assert {name: about[name] for name in expected} == expected
    program.unlink()
    assert page.driver_version() == "unknown: no nvidia-smi"


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


@pytest.mark.parametrize("change", [0.0, 1e-9, 1e-3])
def test_other_weights_after_resuming_are_noticed(setup: Setup, change: float) -> None:
    on_gpu = replace(setup, device=torch.device("cuda", 0))
    values = {"fp32": 0.0, "repeated": 1e-12, "interrupted": change}
    for name, value in values.items():
        folder = runs.run_folder(setup, name)
        folder.mkdir(parents=True)
        weight = torch.ones(8, dtype=torch.float64)
        weight[0] += value
        torch.save({"weight": weight}, folder / "weights.pth")
    failures = {}
    for on in (setup, on_gpu):
        record = Record()
        runs._compare_weights(on, record)
        failures[on.device.type] = record.failures
    bits, difference = "weights: equal bits", "weights: relative difference"
    # On a GPU the last bits may differ.
    expected = {0.0: ([], []), 1e-9: ([bits], []), 1e-3: ([bits, difference], [difference])}
    assert (failures["cpu"], failures["cuda"]) == expected[change]


def test_ranks_need_several_devices(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Skip, match="needs --multi"):
        ranks.num_ranks(setup)
    several = replace(setup, multi=True)
    assert ranks.num_ranks(several) == 2
    on_gpu = replace(several, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert ranks.num_ranks(on_gpu) == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Skip, match="needs two GPUs; torch sees 1"):
        ranks.num_ranks(on_gpu)


def test_a_process_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"exit code 7, not 0: (.|\n)*the reason"):
        start(tmp_path / "log", "-c", "print('the reason'); raise SystemExit(7)").wait(60)
    with pytest.raises(ProcessFailed, match=r"no end within 0\.2 s"):
        start(tmp_path / "log", "-c", "import time; time.sleep(60)").wait(0.2)


def test_waits_are_counted_by_the_projects_line() -> None:
    with profiling.counted_warnings() as sites:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert sites == {profiling.OUTSIDE: 3}  # this file is not in pipeline/


def test_overlapping_kernels_count_once() -> None:
    assert profiling.union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert profiling.union([]) == 0
