r"""Make a fixed set of DeepFool examples of a net, for adversarial training I.

    torchrun --standalone --nproc_per_node=2 tools/adversarial.py --config runs/ref/config.yaml \
        --model.weights runs/ref/weights.pth --data.val train.parquet --output adversarial
    torchrun ... pipeline/finetune.py --objective.method clean \
        --data.train adversarial/joined.parquet ...

The options are those of pipeline/evaluate.py. The images of the index --data.val are attacked with
--evaluation.attack. x + dx is stored with the true label, in the net's input space, as float32,
which loses no bits. Train with the same data.crop_size, data.mean and data.std. Images that
DeepFool does not flip are left out. OUTPUT/index.parquet lists the examples, OUTPUT/joined.parquet
the images and the examples. The same command resumes an interrupted run, on any number of ranks.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.config import EvaluateConfig, ignored_option_messages, messages, parse

if __name__ == "__main__":  # a mistake in an option is reported before the slow imports below
    messages.check_options(EvaluateConfig, __doc__, "-adversarial")

import torch

from pipeline.data import array_tars, source
from pipeline.data.index import join
from pipeline.errors import STOPPED_EXIT_CODE, Stopped, UserError, exit_on_user_error, warn
from pipeline.evaluate import make_manifest
from pipeline.evaluation.evaluator import Finished
from pipeline.evaluation.manifest import Identity
from pipeline.evaluation.measure import Measurement
from pipeline.evaluation.resolve import resolve
from pipeline.models import prepare
from pipeline.runtime import run_folder
from pipeline.runtime.distributed import DistributedContext, distributed_session
from pipeline.runtime.files import write_json
from pipeline.runtime.monitor import Monitor
from pipeline.runtime.signals import StopRequest


def main() -> None:
    """Attack the images that are not done yet, then index all examples."""
    config = parse.parse(EvaluateConfig, __doc__, output_suffix="-adversarial")
    with (
        exit_on_user_error(),
        distributed_session(config.runtime) as ranks,
        Monitor(None, ranks.is_main) as monitor,
    ):
        config = resolve(config)
        run_folder.check_folder(config, "adversarial")
        torch.manual_seed(0)
        source.check_decoder(config.data, ranks.device)
        index = source.open_index(config, "val")
        net = prepare.build_net(config, index)
        if config.evaluation.space != "input":
            raise UserError("evaluation.space: examples are stored in the net's input space: input")
        identity = make_manifest(config, index, net, ranks.device.type).identity.to_dict()
        warn(*ignored_option_messages(config, ranks.device.type))
        if config.dry_run:
            monitor.say(f"{len(index):,} images to attack, into {config.output}")
            return
        folder = run_folder.open_folder(config, ranks, "adversarial", exclusive=True)
        begin(folder, identity, ranks)
        net = prepare.move_net(net, config.runtime, ranks.device)
        threads = source.decoding_threads(config.data, ranks.num_sharing_cores())
        try:
            num_skipped = attack(folder, Measurement(net, index, config, ranks, threads), monitor)
        except Stopped:
            monitor.say(messages.interrupted())
            raise SystemExit(STOPPED_EXIT_CODE) from None
        if ranks.is_main:
            num_examples = array_tars.write_index(folder, index)
            if config.data.root is None:
                join([Path(index.path), folder / "index.parquet"], folder / "joined.parquet")
            num_left_out = len(index.subset(config.evaluation.num_images)) - num_examples
            counts = f"{num_examples:,} examples; {num_left_out - num_skipped:,} not flipped"
            counts += f"; {num_skipped:,} did not decode" if num_skipped else ""
            monitor.say(f"{folder / 'index.parquet'}: {counts}")
            if config.data.root is None:
                monitor.say(messages.after_examples(folder / "joined.parquet"))
        ranks.barrier()


def begin(folder: Path, identity: dict[str, Any], ranks: DistributedContext) -> None:
    """Refuse a folder with examples of another net or with other options.

    Raises:
        UserError: lists the differences.
    """
    path = folder / "manifest.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
            # Earlier versions recorded no decoder.
            earlier["input"].setdefault("decoder", identity["input"]["decoder"])
            earlier = Identity.from_dict(earlier).to_dict()
            changed = parse.differences(earlier, identity, ())
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            raise UserError(
                f"{path} is damaged; remove {folder} to make the examples again, or give another "
                "--output"
            ) from None
        if changed:
            raise UserError(
                f"output: {folder} contains other examples ({'; '.join(changed)}); give another"
            )
    ranks.barrier()
    if ranks.is_main:
        write_json(path, identity)


def attack(folder: Path, measurement: Measurement, monitor: Monitor) -> int:
    """Attack this rank's share of the images that are not stored yet.

    Returns:
        Number of images of all ranks that did not decode; each of them is tried again by every run.

    Raises:
        Stopped: after a signal.
    """
    stop, ranks = StopRequest(), measurement.ranks
    rows = measurement.index.subset(measurement.config.evaluation.num_images)
    done = array_tars.stored(folder)
    todo = rows[[row not in done for row in rows.tolist()]]
    ranks.barrier()  # all ranks have read before one appends
    monitor.start_progress("attacking", len(rows), len(rows) - len(todo))
    with array_tars.TarAppender(folder / f"rank{ranks.rank}.tar") as appender:

        def keep(finished: Finished, _: list[int]) -> None:
            samples = finished.samples
            flipped = dict(zip(samples.row.tolist(), samples.flipped, strict=True))
            for example in finished.examples:
                if flipped[example.row]:
                    appender.append(example.row, example.image + example.delta)
            appender.flush()
            monitor.advance(len(samples) * ranks.world_size)

        _, skipped = measurement.run(todo, keep, frozenset(todo.tolist()), stop)
    monitor.end_progress()
    return sum(ranks.gather(len(skipped)))


if __name__ == "__main__":
    main()
