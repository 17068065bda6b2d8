r"""Measure how accurate and how robust a classifier is, over ranks and over jobs.

    torchrun --standalone --nproc_per_node=2 pipeline/evaluate.py \
        --config runs/demo/config.yaml --model.weights runs/demo/weights.pth
    torchrun --nproc_per_node=8 pipeline/evaluate.py --data.val val.parquet \
        --model.name resnet18 --model.weights resnet18.pth --evaluation.fgs.search true
    python pipeline/evaluate.py ... --output runs/r18 --shard 3/16    # one job of an array

Takes the YAML files of pipeline/finetune.py; options of training are ignored. Results are written
as images finish, so the same command resumes an interrupted run. Shards do not communicate; the
last one to end merges them, or tools/report.py merge does.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipeline.runtime.agent  # noqa: F401  it looks up torchrun's process before slow imports
from pipeline.config import EvaluateConfig, Shard, ignored_option_messages, messages, parse

if __name__ == "__main__":  # a mistake in an option is reported before the slow imports below
    messages.check_options(EvaluateConfig, __doc__, "-evaluation")

import numpy as np
import torch

from pipeline.attacks import chain
from pipeline.data import source
from pipeline.data.index import Index, evenly_spaced
from pipeline.errors import STOPPED_EXIT_CODE, Stopped, UserError, exit_on_user_error, warn
from pipeline.evaluation import attack_space, merge
from pipeline.evaluation.agreement import relative_tolerance
from pipeline.evaluation.evaluator import Finished
from pipeline.evaluation.manifest import Identity, Manifest
from pipeline.evaluation.measure import Measurement, gather_samples, repeatable_algorithms
from pipeline.evaluation.protocol import (
    Protocol,
    evaluation_protocol,
    preprocessing_of,
)
from pipeline.evaluation.resolve import resolve
from pipeline.evaluation.self_check import largest_difference_that_fits
from pipeline.evaluation.shard_results import ResultsFolder
from pipeline.evaluation.summary import format_summary, write_outputs
from pipeline.models import prepare
from pipeline.models.preprocessing import preprocessing_advice
from pipeline.models.weights_hash import weights_hash
from pipeline.runtime import config_file, machine, run_folder
from pipeline.runtime.distributed import DistributedContext, distributed_session
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.reproducibility import images_at_once, kernels
from pipeline.runtime.signals import StopRequest
from pipeline.runtime.trackers.opening import check_trackers


def main() -> None:
    """Parse the options, start the ranks, evaluate the images that are not done yet, report."""
    config = parse.parse(EvaluateConfig, __doc__, output_suffix="-evaluation")
    with (
        exit_on_user_error(),
        distributed_session(config.runtime) as ranks,
        Monitor(None, ranks.is_main) as monitor,
    ):
        torch.manual_seed(0)  # a net without weights is the same on every rank and in every shard
        config = resolve(config)
        chain.stages_of(config.evaluation.attack)  # reports a mistake in an attack's options
        if ranks.is_main:
            check_trackers(config.tracking)
        run_folder.check_folder(config, "evaluation")
        source.check_decoder(config.data, ranks.device)
        index = source.open_index(config, "val")
        net = prepare.build_net(config, index)
        # A dry run may be on another kind of machine than the evaluation.
        device_type = None if config.dry_run else ranks.device.type
        manifest = make_manifest(config, index, net, device_type)
        rows = rows_of_shard(config, index)
        monitor.say(description(config, manifest.identity.protocol, rows, ranks))
        advice = preprocessing_advice(config.model, config.data)
        warn(*ignored_option_messages(config, ranks.device.type), advice)
        if config.dry_run:
            results = config.folder / "results"
            store = ResultsFolder.for_shard(results, config.resume, manifest, config.part)
            monitor.say(work_description(rows, store.rows_to_do(rows)))
            return
        net = prepare.move_net(net, config.runtime, ranks.device)
        threads = source.decoding_threads(config.data, ranks.num_sharing_cores())
        measurement = Measurement(net, index, config, ranks, threads)
        checked = check_batches(config, net, ranks) | check_lower_bound(measurement)
        manifest = replace(manifest, about=manifest.about | checked)
        store = open_results(config, manifest, ranks, monitor)
        try:
            evaluate(config, measurement, rows, store, monitor)
        except Stopped:
            monitor.say(messages.interrupted(resume=config.resume))
            raise SystemExit(STOPPED_EXIT_CODE) from None
        if ranks.is_main:
            report(store.folder.parent, config, ranks, monitor)
        ranks.barrier()


def rows_of_shard(config: EvaluateConfig, index: Index) -> np.ndarray:
    """The rows of the index that this job evaluates.

    Raises:
        UserError: there are more shards than images.
    """
    rows = index.subset(config.evaluation.num_images)
    if config.part.num_shards > len(rows):
        raise UserError(f"shard: {config.shard} of {len(rows)} images; give at most as many")
    return rows[config.part.number :: config.part.num_shards]


def open_results(
    config: EvaluateConfig, manifest: Manifest, ranks: DistributedContext, monitor: Monitor
) -> ResultsFolder:
    """The results of this shard, new or resumed; all ranks must call this."""
    folder = run_folder.open_folder(config, ranks, "evaluation")
    store = ResultsFolder.start_or_resume(
        folder / "results", config.resume, manifest, config.part, ranks
    )
    if ranks.is_main:
        config_file.save(config, folder / "config.yaml")
        store.keep_mean(config.data.mean)
        monitor.write_progress_to(store.shard_folder / "progress.json")
    return store


def make_manifest(
    config: EvaluateConfig, index: Index, net: torch.nn.Module, device_type: str | None
) -> Manifest:
    """The identity of this evaluation, and what else reports need.

    Args:
        config: the options.
        index: the images.
        net: the net, whose weights are hashed.
        device_type: type of the run's device, cpu or cuda; None if it is not known yet.
    """
    num_classes = prepare.num_classes_of(config, index)
    identity = Identity(
        model=config.model.name,
        weights=weights_hash(net),
        index=index.fingerprint,
        num_indexed=len(index),
        num_images=config.evaluation.num_images,
        input=preprocessing_of(config.data, device_type),
        protocol=evaluation_protocol(config.evaluation, config.runtime, num_classes),
    )
    about = {
        "index": index.path,
        "class_names": index.class_names,
        "class_ids": index.classes.identities,
        "mix_decoders": config.mix_decoders,
    }
    return Manifest(identity, about)


def check_batches(
    config: EvaluateConfig, net: torch.nn.Module, ranks: DistributedContext
) -> dict[str, Any]:
    """Check that an image's results do not depend on its batch; returns entries of the manifest."""
    view = attack_space.attack_view_of(net, config.data, config.evaluation, ranks.device)
    shape = (config.data.channels, config.data.crop_size, config.data.crop_size)
    size = images_at_once(config.evaluation.batch_size, ranks.device)
    with repeatable_algorithms(config, ranks.device):
        difference = largest_difference_that_fits(view, shape, size, ranks.device)
    difference = max(ranks.gather(difference))
    if difference > 0:
        warn(
            f"logits and gradients of an image depend on its batch (relative "
            f"{difference:.1g}, {ranks.device_name}): evaluations with other batches or shards "
            f"agree to {relative_tolerance(difference):.0e}, not to the last bit; see "
            "docs/reproducibility.md"
        )
    return {"batch_difference": difference, "kernels": kernels(ranks.device)}


def check_lower_bound(measurement: Measurement) -> dict[str, Any]:
    """Check that the net has lower bounds, if they are wanted; returns entries of the manifest."""
    reason = measurement.no_lower_bound
    warn(messages.no_lower_bound(reason))
    return {"no_lower_bound": reason}


def description(
    config: EvaluateConfig, protocol: Protocol, rows: np.ndarray, ranks: DistributedContext
) -> str:
    """Describes the evaluation in two lines."""
    fgs, attack = config.evaluation.fgs, config.evaluation.attack
    names = " + ".join(
        "DeepFool" if m == "deepfool" else attack.describe(m) for m in attack.methods
    )
    measures = f"accuracy, {names} (p {protocol.norm}, {protocol.deepfool_limits}{protocol.space})"
    if fgs.measured:
        measures += f", FGS at {len(fgs.measured)} eps"
    if fgs.search:
        measures += ", eps_ref"
    part = f", shard {config.shard}" if config.part.num_shards > 1 else ""
    size = images_at_once(config.evaluation.batch_size, ranks.device)
    return (
        f"{config.model.name} on {ranks.world_size} x {ranks.device.type}{part}: {len(rows)} "
        f"images in batches of {size}\n{measures}; in {config.output}"
    )


def work_description(rows: np.ndarray, todo: np.ndarray) -> str:
    """How many images have no result yet."""
    return f"{len(todo)} of {len(rows)} images to evaluate"


def evaluate(
    config: EvaluateConfig,
    measurement: Measurement,
    rows: np.ndarray,
    store: ResultsFolder,
    monitor: Monitor,
) -> None:
    """Evaluate the ``rows`` that are not in ``store`` yet, and write their results to it.

    Raises:
        Stopped: after a signal.
    """
    stop, ranks, index = StopRequest(), measurement.ranks, measurement.index
    # All ranks have read before one appends, and take the list of rank 0: a job of other shards may
    # write to the folder meanwhile.
    todo = ranks.gather(store.rows_to_do(rows))[0]
    monitor.say(work_description(rows, todo))
    monitor.start_progress("evaluating", len(rows), len(rows) - len(todo))
    begin = time.perf_counter()
    with store.appender(ranks.rank) as appender:

        def keep(finished: Finished, skipped: list[int]) -> None:
            appender.store_examples(finished.examples)  # first: images with a row are done
            appender.append(finished.samples, [index.id(row) for row in finished.samples.row])
            appender.skip(skipped, [index.id(row) for row in skipped])
            monitor.advance(len(finished.samples) * ranks.world_size)

        rank_samples, skipped = measurement.run(todo, keep, example_rows(config, index), stop)
    samples, _ = gather_samples(rank_samples, skipped, todo, ranks)
    monitor.end_progress()
    # A job that was killed after its last image has left no record, and no versions.
    if ranks.is_main and (len(todo) or not store.has_records()):
        store.log_run(describe_job(config, ranks, len(samples), time.perf_counter() - begin))


def example_rows(config: EvaluateConfig, index: Index) -> frozenset[int]:
    """Rows of the contact sheet, the same for any number of shards."""
    rows = index.subset(config.evaluation.num_images)
    return frozenset(rows[evenly_spaced(len(rows), config.num_examples)].tolist())


def describe_job(
    config: EvaluateConfig, ranks: DistributedContext, num_images: int, seconds: float
) -> dict[str, Any]:
    """The work of this job and its machine, for the summary."""
    return {
        "shard": config.shard,
        "num_images": num_images,
        "images_per_second": num_images / seconds,
        "seconds": seconds,
        "ranks": ranks.world_size,
        "device": ranks.device_name,
        "versions": machine.versions(),
    }


def report(
    folder: Path, config: EvaluateConfig, ranks: DistributedContext, monitor: Monitor
) -> None:
    """Merge the shards if this was the last one, and print the results."""
    with merge.merging(folder) as merged:  # two shards may end at the same time
        if not merged.complete:
            monitor.say(f"shard {config.shard} is done; {merged.missing_message()}")
            num_shards = config.part.num_shards
            shard = Shard(min(merged.num_missing_by_shard(num_shards)), num_shards)
            monitor.say(messages.after_shard(folder, sys.argv[1:], shard, ranks.local_size))
            return
        monitor.say(format_summary(write_outputs(folder, merged)))
    monitor.say(f"{folder / 'summary.json'}, {folder / 'samples.parquet'}")
    monitor.say(messages.after_evaluation(folder))


if __name__ == "__main__":
    main()
