r"""Measure the speed of the gradient, the attack, the loader, and a whole training step.

    python tools/benchmark.py regularizer --weights W.pth --data val.parquet
    python tools/benchmark.py regularizer --weights W.pth --data train.parquet \
        --crops random --labels true
    python tools/benchmark.py deepfool --weights W.pth --data val.parquet
    python tools/benchmark.py attacks --weights W.pth --data val.parquet --steps 1000
    python tools/benchmark.py evaluation --weights W.pth --data val.parquet
    python tools/benchmark.py loader --data train.parquet
    python tools/benchmark.py step --device cuda --model resnet18 --precision bf16 --num-images 256
    python tools/benchmark.py robustness --runs runs/reproduce/mnist_mlp
    python tools/benchmark.py families    # nets of each family: FLOPs of a step, in plain steps
    python tools/benchmark.py batches     # whether an image's last bits depend on its batch
    python tools/benchmark.py data        # index, plan and scan at ILSVRC-2012's size

deepfool, attacks and evaluation also time other libraries, if they are installed: pip install -e
".[bench]".
Each benchmark prints a table; --json FILE writes device, versions and rows. Compare only variants
of one run: they are interleaved, so other work on the machine changes all times equally.
"""

import argparse
from importlib import import_module
from pathlib import Path

from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.errors import exit_on_user_error
from pipeline.runtime.files import check_writable

BENCHMARKS = (  # modules of tools/benchmarks
    "regularizer",
    "deepfool",
    "attacks",
    "evaluation",
    "loader",
    "step",
    "robustness",
    "families",
    "batches",
    "data",
)
DEFAULT_IMAGES = (
    "regularizer 16, deepfool 64, attacks 32, evaluation 100, loader 1024 per repeat, "
    "step 32 per batch, families 2"
)


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    top.add_argument("what", choices=BENCHMARKS)
    top.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    top.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    top.add_argument("--model", default="squeezenet1_1", help="net, as model.name (%(default)s)")
    top.add_argument("--weights", help="its weights, as model.weights (default: random)")
    top.add_argument("--data", help="index of images (default: generated images)")
    top.add_argument("--num-images", type=arguments.POSITIVE, help=f"(default: {DEFAULT_IMAGES})")
    top.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    top.add_argument("--channels-last", choices=("auto", "yes", "no"), default="auto")
    top.add_argument(
        "--repeats",
        type=arguments.POSITIVE,
        default=5,
        help="timed runs of each variant (%(default)s)",
    )
    top.add_argument(
        "--max-images",
        type=lambda text: text if text == "auto" else arguments.POSITIVE(text),
        help="as regularizer.max_images (default: no limit)",
    )
    top.add_argument(
        "--crops",
        choices=("centre", "random"),
        default="centre",
        help="regularizer: which crops of the photos (%(default)s)",
    )
    top.add_argument(
        "--labels",
        choices=("predicted", "true"),
        default="predicted",
        help="regularizer: predicted: the net's classes, so that all are correct; true: those of "
        "the index, and each gradient also of all samples (%(default)s)",
    )
    top.add_argument(
        "--steps",
        type=arguments.POSITIVE,
        default=100,
        help="attacks: steps of DDN and FMN (%(default)s)",
    )
    top.add_argument(
        "--runs",
        help="robustness: folder of tools/reproduce.py --attack METHOD, of which each Deep Defense "
        "run gets its cost, in epochs of plain training",
    )
    top.add_argument(
        "--peak-tflops",
        type=arguments.Number(float, Range(above=0)),
        help="peak of the GPU, for step (default: by its name and precision)",
    )
    return top


def run(options: argparse.Namespace) -> None:
    """Run the benchmark that the options name, and print its table."""
    common = import_module("benchmarks.common")  # torch, which --help does not wait for
    if options.json is not None:
        check_writable(options.json, common.JSON_REMEDY)
    device = common.set_up_device(options)
    benchmark = import_module(f"benchmarks.{options.what}").benchmark
    common.report(benchmark(options), device, options)


if __name__ == "__main__":
    args = parser().parse_args()
    with exit_on_user_error():
        run(args)
