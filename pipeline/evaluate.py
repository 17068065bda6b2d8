"""Measure accuracy and rho2 of a classifier over an index, sharded over ranks.

    torchrun --standalone --nproc_per_node=2 pipeline/evaluate.py \
        --config runs/demo/config.yaml --model.weights runs/demo/weights.pth
    torchrun --nproc_per_node=8 pipeline/evaluate.py --config configs/imagenet_resnet18.yaml \
        --data.val val.parquet --model.weights resnet18.pth

Takes the YAML files of pipeline/finetune.py; what only training reads is passed over. Results are
written as they are found, so the same command goes on from where it was cut.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import cli, evaluation, results, setup
from pipeline.config import EvaluateConfig
from pipeline.data.index import Index
from pipeline.distributed import Ranks, guarded, session
from pipeline.monitor import Monitor
from pipeline.results import ResultsFolder, Samples


def main() -> None:
    """Parse, join the ranks, evaluate what is not done yet, report."""
    config = cli.parse(EvaluateConfig, __doc__, output_suffix="-evaluation")
    with guarded(), session(config.runtime) as ranks, Monitor(None, ranks.first) as monitor:
        torch.manual_seed(0)  # a net without weights is the same on every rank and in every part
        index = setup.open_index(config, "val")
        net = setup.build_net(config, index)
        identity = describe(config, index, net)
        folder = setup.open_folder(config, ranks, foreign="checkpoints")
        store = ResultsFolder.open(folder / "results", config.resume, identity, ranks)
        net = net.to(ranks.device, memory_format=setup.memory_format(config.runtime, ranks.device))
        rows = index.subset(config.evaluation.num_images)
        samples, skipped, speed = evaluate(config, index, net, rows, store, ranks, monitor)
        if ranks.first:
            summary = {
                **samples.summary(),
                "num_skipped": len(skipped),
                "skipped": skipped,
                **identity,
                "images_per_second": speed,
                "ranks": ranks.size,
                "device": ranks.device_name,
                "versions": setup.versions(),
            }
            results.write_samples(folder / "samples.parquet", samples, index.ids)
            results.write_json(folder / "summary.json", summary)
            report(folder, summary, monitor)
        ranks.barrier()


def describe(config: EvaluateConfig, index: Index, net: torch.nn.Module) -> dict[str, Any]:
    """What tells this evaluation from others; results of different ones do not mix."""
    return {
        "model": config.model.name,
        "weights": evaluation.fingerprint(net),
        "index": index.fingerprint,
        "num_images": config.evaluation.num_images,
        "input": {name: getattr(config.data, name) for name in evaluation.INPUT_OPTIONS},
        "definition": evaluation.definition(config.evaluation.attack, config.runtime.tf32),
    }


def evaluate(
    config: EvaluateConfig,
    index: Index,
    net: torch.nn.Module,
    rows: np.ndarray,
    store: ResultsFolder,
    ranks: Ranks,
    monitor: Monitor,
) -> tuple[Samples, list[str], float]:
    """Evaluate the rows that ``store`` lacks.

    Returns:
        The results of all rows on every rank, the ids of images that did not decode, and the
        images per second of this part.
    """
    done = store.read()
    todo = rows[~np.isin(rows, done.row)]
    ranks.barrier()  # all have read before one appends
    monitor.say(f"{config.model.name}: {len(todo)} of {len(rows)} images to evaluate")
    monitor.start_progress("evaluating", len(todo))
    begin = time.perf_counter()
    with store.appender(ranks.rank) as appender:

        def watch(_batch: Any, _found: Any, part: Samples) -> None:
            appender.append(part, [index.id(row) for row in part.row])
            monitor.advance(len(part) * ranks.size)

        threads = setup.decoding_threads(config.data, ranks.local_size)
        mine, skipped = evaluation.measure(net, index, todo, config, ranks, threads, watch)
    found, left_out = evaluation.join(mine, skipped, todo, ranks)
    speed = len(found) / (time.perf_counter() - begin)
    return Samples.concat([done, found]), left_out, speed


def report(folder: Path, summary: dict[str, Any], monitor: Monitor) -> None:
    """Print what was found."""
    monitor.end_progress()
    attack = summary["definition"]
    monitor.say(
        f"accuracy {summary['accuracy']:.2%}, rho2 {summary['rho2']:.4g} over "
        f"{summary['num_samples']} images, {summary['num_unflipped']} never flipped "
        f"(q {attack['num_candidates']}, at most {attack['max_iterations']} iterations, overshoot "
        f"{attack['overshoot']}, {attack['precision']})"
    )
    if summary["num_skipped"]:
        monitor.say(f"{summary['num_skipped']} images did not decode: see summary.json")
    monitor.say(f"{folder / 'summary.json'}, {folder / 'samples.parquet'}")


if __name__ == "__main__":
    main()
