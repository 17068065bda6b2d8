"""Results on disk, shards, and what is made of them."""

import csv
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import (
    AttackConfig,
    EvaluateConfig,
    EvaluationConfig,
    FgsConfig,
    RuntimeConfig,
    Shard,
)
from pipeline.errors import UserError
from pipeline.evaluation import contact_sheet, merge
from pipeline.evaluation.manifest import Identity
from pipeline.evaluation.protocol import Protocol, evaluation_protocol
from pipeline.evaluation.samples import Example
from pipeline.evaluation.shard_results import ResultsFolder
from pipeline.evaluation.summary import Summary, read_samples, write_outputs
from pipeline.runtime import run_folder
from tests.helpers.stored_results import (
    FGS_EPS,
    ONE_RANK,
    PROTOCOL,
    manifest,
    names,
    samples,
    shard,
)


def test_records_are_stored_without_loss() -> None:
    reference = FgsConfig(eps=FGS_EPS, reference=1.0)
    attack = AttackConfig(step_direction="loss_gradient", norm="inf")
    config = EvaluationConfig(attack=attack, fgs=reference, space="pixels", clip=True)
    protocols = [
        PROTOCOL,
        evaluation_protocol(config, RuntimeConfig(tf32=True), 10),
        evaluation_protocol(EvaluationConfig(), RuntimeConfig(), 10),
    ]
    for protocol in protocols:
        assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
        identity = replace(manifest().identity, protocol=protocol)
        assert Identity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"norm": 2}, "another kind of value for norm of its definition"),
        ({"colour": "red"}, "the unknown key colour of its definition"),
        ({"fgs": {"eps": [], "search": True}}, "lacks reference"),
    ],
)
def test_a_damaged_protocol(changes: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Protocol.from_dict(PROTOCOL.to_dict() | changes)


def test_results_survive_and_are_not_counted_twice(tmp_path: Path) -> None:
    store = shard(tmp_path, 0, 2, [4, 2])
    with store.appender(1) as appender:
        appender.append(samples([2, 0]), names([2, 0]))
    file = tmp_path / "results" / "0-of-2" / "rank1.jsonl"
    with file.open("a") as torn:
        torn.write('{"row": 9, "torn')
    assert store.read().samples.row.tolist() == [0, 2, 4]
    with store.appender(1) as appender:
        appender.append(samples([5]), names([5]))
    stored = store.read()
    assert stored.samples.row.tolist() == [0, 2, 4, 5]
    assert stored.ids == {row: f"image {row}" for row in (0, 2, 4, 5)}
    assert np.array_equal(stored.samples.fgs_correct, samples([0, 2, 4, 5]).fgs_correct)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    store = shard(tmp_path, 0, 1, [0])
    with store.appender(0), pytest.raises(UserError, match="another process is writing"):
        store.appender(0)
    store.appender(0).__exit__()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    shard(tmp_path, 0, 3, [0, 3])
    shard(tmp_path, 1, 3, [4])
    merged = merge.merge_shards(tmp_path)
    line = merged.missing_message()
    assert line == "3 of 6 images are missing: 1 of shard 1/3, 2 of shard 2/3 (rows 1, 2, 5)"
    assert write_outputs(tmp_path, merged).num_missing == 3
    shard(tmp_path, 2, 3, [1, 2, 5])
    assert merge.merge_shards(tmp_path).complete


def test_images_that_did_not_decode_are_not_missing(tmp_path: Path) -> None:
    store = shard(tmp_path, 0, 1, [0, 1, 2, 3])
    with store.appender(0) as appender:
        appender.skip([4, 5], ["bad", "repaired"])
        appender.append(samples([5]), ["repaired"])
    merged = merge.merge_shards(tmp_path)
    assert merged.complete
    summary = write_outputs(tmp_path, merged)
    assert summary.skipped == ["bad"]


def test_overlaps_must_agree(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, [0, 1, 2])
    near = [3.0 * (1 + 9e-6)]
    shard(tmp_path, 1, 2, [2], perturbation_norm=near)
    assert len(merge.merge_shards(tmp_path).stored.samples) == 3
    shard(tmp_path, 2, 3, [2], perturbation_norm=[3.001])
    with pytest.raises(UserError, match="two results of image 2 disagree: perturbation_norm"):
        merge.merge_shards(tmp_path)


def test_counts_of_overlaps_must_be_equal(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, [0])
    shard(tmp_path, 1, 2, [0], steps=[4])
    with pytest.raises(UserError, match="disagree: steps is 3, and 4"):
        merge.merge_shards(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "model: net -> other"),
        ({"weights": "abc"}, "weights: 0 -> abc"),
        ({"num_indexed": 7}, "num_indexed: 6 -> 7"),
        (
            {"protocol": replace(PROTOCOL, norm="inf")},
            r"definition\.norm: 2 -> inf",
        ),
    ],
)
def test_different_evaluations_do_not_mix(tmp_path: Path, changes: dict, message: str) -> None:
    shard(tmp_path / "a", 0, 2, [0])
    shard(tmp_path / "b", 1, 2, [1], manifest=manifest(**changes))
    (tmp_path / "b/results/1-of-2").rename(tmp_path / "a/results/1-of-2")
    with pytest.raises(UserError, match=message):
        merge.merge_shards(tmp_path / "a")
    with pytest.raises(UserError, match="results of another evaluation"):
        shard(tmp_path / "a", 0, 2, [0])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no results"):
        merge.merge_shards(tmp_path)
    shard(tmp_path, 0, 1, [0, 1, 2])
    path = tmp_path / "results" / "0-of-1" / "rank0.jsonl"
    path.write_text(path.read_text().replace('"label": 0', '"label" 0', 1))
    with pytest.raises(UserError, match=r"rank0\.jsonl is damaged in line 1"):
        merge.merge_shards(tmp_path)
    (path.parent / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        merge.merge_shards(tmp_path)


def test_lines_without_checksums_are_read(tmp_path: Path) -> None:
    """As versions before the checksums wrote them."""
    store = shard(tmp_path, 0, 1, [0, 1, 2])
    path = tmp_path / "results" / "0-of-1" / "rank0.jsonl"
    text, number = re.subn(r', "crc32": \d+}', "}", path.read_text())
    assert number == 3
    path.write_text(text)
    assert store.read().samples.row.tolist() == [0, 1, 2]


def test_published_files_hold_what_was_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, delta = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
    store = shard(tmp_path, 0, 1, list(range(6)))
    with store.appender(0) as appender:
        appender.store_examples([Example(3, image, delta, 0, 1)])
    summary = write_outputs(tmp_path, merge.merge_shards(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary.to_dict()
    assert Summary.from_dict(json.loads((tmp_path / "summary.json").read_text())) == summary
    read_back, identity = read_samples(tmp_path / "samples.parquet")
    for name, column in vars(samples(list(range(6)))).items():
        equal_nan = column.dtype == float
        assert np.array_equal(getattr(read_back, name), column, equal_nan=equal_nan), name
    assert identity == manifest().identity
    with (tmp_path / "classes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], float(row["accuracy"])) == ("zero", summary.statistics.accuracy)
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert board.Scalars("evaluate/rho2")[0].value == pytest.approx(summary.statistics.rho)
    (histogram,) = board.Histograms("evaluate/ratio")
    assert histogram.histogram_value.num == 6
    assert histogram.histogram_value.sum == pytest.approx(6 * summary.statistics.rho)
    assert board.Images("evaluate/perturbations")[0].width > 300
    figure = contact_sheet.draw_stored(tmp_path, manifest())
    pictures = [axis.images[0].get_array() for axis in figure.axes]
    peak = np.abs(delta * 0.25).max()
    expected = (image * 0.25 + 0.5, 0.5 + 0.5 / peak * delta * 0.25, (image + delta) * 0.25 + 0.5)
    for picture, pixels in zip(pictures, expected, strict=True):
        assert np.allclose(picture, pixels[0].clip(0, 1), atol=1e-6)
    assert [figure.axes[k].get_title() for k in (0, 2)] == ["zero", "one"]
    about = {**manifest().about, "class_names": ["cost_$5_vs_$6", "one"]}  # no formula
    figure = contact_sheet.draw_stored(tmp_path, replace(manifest(), about=about))
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_title() == "cost_$5_vs_$6"


def merge_and_write(folder: Path) -> Summary:
    with merge.merging(folder) as merged:
        return write_outputs(folder, merged)


def test_a_merge_reads_after_an_earlier_one_has_written(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2, [0, 2, 4])
    with ThreadPoolExecutor(1) as pool:
        with merge.merging(tmp_path) as early:
            late = pool.submit(merge_and_write, tmp_path)
            time.sleep(0.3)
            shard(tmp_path, 1, 2, [1, 3, 5])
            assert write_outputs(tmp_path, early).num_missing == 3
        assert late.result().num_missing == 0
    assert json.loads((tmp_path / "summary.json").read_text())["num_missing"] == 0


def test_shards_that_end_at_once_join_one_after_another(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, list(range(6)))
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: merge_and_write(tmp_path), range(8)))
    assert all(summary == summaries[0] for summary in summaries)
    assert json.loads((tmp_path / "summary.json").read_text()) == summaries[0].to_dict()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_table_of_samples_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    with pytest.raises(UserError, match="no file"):
        read_samples(path)
    shard(tmp_path, 0, 1, list(range(6)))
    write_outputs(tmp_path, merge.merge_shards(tmp_path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot be read .* tools/report\.py merge"):
        read_samples(path)


def test_a_changed_byte_of_samples_is_no_other_result(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, list(range(6)))
    write_outputs(tmp_path, merge.merge_shards(tmp_path))
    path = tmp_path / "samples.parquet"
    whole, (expected, _) = path.read_bytes(), read_samples(path)
    refused = 0
    for position in range(4, len(whole), 13):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            changed, _ = read_samples(path)
        except UserError:
            refused += 1
            continue
        for name, column in vars(expected).items():
            equal_nan = column.dtype == float
            values = getattr(changed, name)
            assert np.array_equal(values, column, equal_nan=equal_nan), (position, name)
    assert refused > 100


def test_resume_never_and_elsewhere(tmp_path: Path) -> None:
    shard(tmp_path, 0, 1, [0])
    results = tmp_path / "results"
    with pytest.raises(UserError, match="resume is never"):
        ResultsFolder.start_or_resume(results, "never", manifest(), Shard(0, 1), ONE_RANK)
    with pytest.raises(UserError, match=r"resume: .* is not auto, never"):
        ResultsFolder.start_or_resume(
            results, str(tmp_path / "no"), manifest(), Shard(0, 1), ONE_RANK
        )
    store = ResultsFolder.start_or_resume(
        tmp_path / "x", str(results), manifest(), Shard(1, 2), ONE_RANK
    )
    assert store.read().samples.row.tolist() == [0]
    assert store.read().manifest == replace(manifest())


def test_shards_that_begin_at_once_find_the_folder_writable(tmp_path: Path) -> None:
    """Each looks whether it can write; none may take away what another looks at."""
    config = EvaluateConfig(output=str(tmp_path / "x"))
    with ThreadPoolExecutor(16) as pool:
        calls = [
            pool.submit(run_folder.open_folder, config, ONE_RANK, "evaluation") for _ in range(400)
        ]
        assert {call.result() for call in calls} == {tmp_path / "x"}
    assert not list((tmp_path / "x").iterdir())
