"""Results of images that the CPU decoded, and of images that a GPU decoded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DataConfig
from pipeline.errors import UserError
from pipeline.evaluation import merge
from pipeline.evaluation.manifest import Manifest, read_manifest
from pipeline.evaluation.protocol import preprocessing_of
from pipeline.evaluation.shard_results import check_same_evaluation
from pipeline.evaluation.summary import Summary, format_summary, read_samples, write_outputs
from pipeline.reports import pairs
from tests.helpers.comparisons import evaluated
from tests.helpers.stored_results import manifest, shard

REMEDY = r"--data\.decoder cpu, or merge .* --mix_decoders true"
EPYC = {"device": "AMD EPYC 9654 96-Core Processor", "instructions": "AVX512"}


def decoded_by(decoder: str | None, mix: bool = False, **changes: Any) -> Manifest:
    identity = manifest(**changes).identity
    identity = replace(identity, input=replace(identity.input, decoder=decoder))
    return Manifest(identity, {**manifest().about, "mix_decoders": mix})


@pytest.mark.parametrize(
    ("decoder", "device_type", "expected"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "gpu"),
        ("cpu", "cuda", "cpu"),
        ("gpu", "cuda", "gpu"),
        ("auto", None, None),
        ("cpu", None, "cpu"),
        ("gpu", None, "gpu"),
    ],
)
def test_the_decoder_is_recorded(
    decoder: Any, device_type: str | None, expected: str | None
) -> None:
    assert preprocessing_of(DataConfig(decoder=decoder), device_type).decoder == expected


@pytest.mark.parametrize(
    ("kernels", "decoder"),
    [
        (None, "cpu"),
        ({}, "cpu"),
        (EPYC, "cpu"),
        ({"device": "NVIDIA H100 80GB HBM3"}, "gpu"),
        ({"device": "Tesla T4"}, "gpu"),
    ],
)
def test_manifests_of_earlier_versions(kernels: Any, decoder: str) -> None:
    values = json.loads(json.dumps(manifest().to_dict()))
    del values["identity"]["input"]["decoder"]
    if kernels is not None:
        values["about"]["kernels"] = kernels
    assert Manifest.from_dict(values).identity.input.decoder == decoder
    values["identity"]["input"]["decoder"] = "cpu"  # recorded: the device does not matter
    assert Manifest.from_dict(values).identity.input.decoder == "cpu"


@pytest.mark.parametrize(
    ("devices", "decoder"),
    [
        ([], "cpu"),
        ([EPYC["device"]], "cpu"),
        (["NVIDIA A100-SXM4-40GB"] * 2, "gpu"),
        (["NVIDIA A100-SXM4-40GB", EPYC["device"]], "cpu and gpu"),
    ],
)
def test_summaries_of_earlier_versions(tmp_path: Path, devices: list[str], decoder: str) -> None:
    shard(tmp_path, 0, 1, list(range(6)))
    values = write_outputs(tmp_path, merge.merge_shards(tmp_path)).to_dict()
    values = json.loads(json.dumps(values))
    del values["input"]["decoder"]
    values["runs"] = [{"device": device} for device in devices]
    assert Summary.from_dict(values).identity.input.decoder == decoder


def test_results_of_another_decoder_are_refused(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2, [0], manifest=decoded_by("cpu"))
    with pytest.raises(UserError, match=rf"that one: input\.decoder: gpu -> cpu\); .*{REMEDY}"):
        shard(tmp_path, 1, 2, [1], manifest=decoded_by("gpu"))
    shard(tmp_path / "b", 1, 2, [1], manifest=decoded_by("gpu"))
    (tmp_path / "b/results/1-of-2").rename(tmp_path / "results/1-of-2")
    with pytest.raises(UserError, match=rf"evaluations: input\.decoder: cpu -> gpu; .*{REMEDY}"):
        merge.merge_shards(tmp_path)


def test_where_more_differs_one_decoder_is_no_remedy(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2, [0], manifest=decoded_by("cpu"))
    other = decoded_by("gpu", model="other")
    with pytest.raises(UserError, match=r"decoder: gpu -> cpu; model: other -> net") as refused:
        check_same_evaluation(tmp_path / "results", other)
    assert "mix_decoders" not in str(refused.value)
    other = decoded_by("gpu", mix=True, model="other")
    with pytest.raises(UserError, match=r"that one: model: other -> net\); give another"):
        check_same_evaluation(tmp_path / "results", other)


@pytest.mark.parametrize("mix", [(True, False), (False, True)], ids=["first", "second"])
def test_both_decoders_are_merged_on_request(tmp_path: Path, mix: tuple[bool, bool]) -> None:
    shard(tmp_path, 0, 2, [0, 1, 2], manifest=decoded_by("cpu", mix[0]))
    shard(tmp_path, 1, 2, [3, 4, 5], manifest=decoded_by("gpu", mix[1]))
    merged = merge.merge_shards(tmp_path)
    assert merged.complete
    summary = write_outputs(tmp_path, merged)
    assert summary.identity.input.decoder == "cpu and gpu"
    assert read_samples(tmp_path / "samples.parquet")[1] == summary.identity
    assert "a GPU decoded some images" in format_summary(summary)


def test_one_decoder_is_not_mentioned(tmp_path: Path) -> None:
    for decoder in ("cpu", "gpu"):
        folder = tmp_path / decoder
        shard(folder, 0, 1, list(range(6)), manifest=decoded_by(decoder, mix=True))
        summary = write_outputs(folder, merge.merge_shards(folder))
        assert summary.identity.input.decoder == decoder
        assert "decoded" not in format_summary(summary)


def test_a_resumed_shard_remembers_both_decoders(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, [0, 1], manifest=decoded_by("cpu"))
    shard(tmp_path, 0, 1, [2, 3], manifest=decoded_by("gpu", mix=True))
    stored = read_manifest(tmp_path / "results/0-of-1/manifest.json")
    assert stored.identity.input.decoder == "cpu and gpu"
    shard(tmp_path, 0, 1, [4, 5], manifest=decoded_by("gpu"))  # was allowed once
    merged = merge.merge_shards(tmp_path)
    assert merged.complete
    assert merged.stored.manifest.identity.input.decoder == "cpu and gpu"


def test_one_shard_allows_both_decoders_for_all(tmp_path: Path) -> None:
    shard(tmp_path, 0, 3, [0, 3], manifest=decoded_by("gpu"))
    shard(tmp_path, 1, 3, [1, 4], manifest=decoded_by("cpu", mix=True))
    shard(tmp_path, 2, 3, [2], manifest=decoded_by("cpu"))
    shard(tmp_path, 1, 3, [], manifest=decoded_by("cpu"))  # resumed without the option
    shard(tmp_path, 2, 3, [5], manifest=decoded_by("cpu"))
    assert merge.merge_shards(tmp_path).complete


def test_a_launcher_need_not_know_the_decoder(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2, [0], manifest=decoded_by("gpu"))
    check_same_evaluation(tmp_path / "results", decoded_by(None))
    with pytest.raises(UserError, match=r"input\.decoder: cpu -> gpu"):
        check_same_evaluation(tmp_path / "results", decoded_by("cpu"))


def test_evaluations_by_two_decoders_are_not_compared() -> None:
    a, b = (
        evaluated(decoder, list(range(6)), decoded_by(decoder).identity)
        for decoder in ("cpu", "gpu")
    )
    with pytest.raises(UserError, match=r"input\.decoder: cpu -> gpu; .*--data\.decoder cpu"):
        pairs.pair(a, b)
