"""Measure: the gradient's cost and the data path.

    python tools/benchmark.py regularizer --model squeezenet1_1 --weights W.pth --data val.parquet
    python tools/benchmark.py data        # index, plan and scan at ILSVRC-2012's size

Each prints a table; --json FILE writes device, versions and rows. Benchmarks, not tests: variants
are run in turn and compared within one run, since other work on the machine moves the figures.
"""

import argparse
from pathlib import Path

from benchmarks import common, data, regularizer

from pipeline.distributed import guarded

BENCHMARKS = {"regularizer": regularizer.benchmark, "data": data.benchmark}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("what", choices=BENCHMARKS)
    top.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    top.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    top.add_argument("--model", default="squeezenet1_1", help="net, as model.name (%(default)s)")
    top.add_argument("--weights", help="its weights, as model.weights (default: random)")
    top.add_argument("--data", help="index of images (default: generated images)")
    top.add_argument("--num-images", type=int, default=16, help="in a batch (%(default)s)")
    top.add_argument("--repeats", type=int, default=5, help="timed runs a variant (%(default)s)")
    return top


if __name__ == "__main__":
    options = parser().parse_args()
    with guarded():
        common.report(BENCHMARKS[options.what](options), common.device_of(options), options.json)
