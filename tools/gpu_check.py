r"""Check this project on a GPU, in about ten minutes and without data.

    python tools/gpu_check.py --device cuda --output gpu-check
    python tools/gpu_check.py --device cuda --multi                 # also ranks on two or more GPUs
    python tools/gpu_check.py --device cuda --only decoding order   # some checks
    python tools/gpu_check.py --device cpu                          # the small form, without a GPU
    python tools/gpu_check.py --list

Images are generated. Results are compared with the CPU's, or with what the documentation claims;
then speed is measured. OUTPUT/gpu_check.json and OUTPUT/gpu_check.md are written after each check.
A check that fails does not stop the others. Exit status: 0, also if some were skipped; 1 if a check
failed or none passed; 2 after a mistake in the options.
"""

import argparse
import faulthandler
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import common
from gpu_checks import (
    against_cpu,
    evaluation,
    page,
    pixels,
    profiling,
    ranks,
    runs,
    suite,
    tables,
)
from gpu_checks.check import FULL, SMALL, Check, Outcome, Setup, run_check, run_in_new_process
from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.errors import exit_on_user_error
from pipeline.runtime.files import check_writable

CHECKS: dict[str, Check] = {
    "gpu_tests": suite.gpu_tests,
    # Correctness.
    "decoding": pixels.decoding,
    "order": pixels.order,
    "half_input": pixels.half_input,
    "resnet18": against_cpu.resnet18,
    "vit_b_16": against_cpu.vit_b_16,
    "squeezenet1_1": against_cpu.squeezenet1_1,
    "half_precision": against_cpu.half_precision,
    "equal_bits": evaluation.equal_bits,
    # Runs and damaged data.
    "training": runs.training,
    "resume": runs.resume,
    "damaged_images": pixels.damaged_images,
    # Speed.
    "waits": profiling.waits,
    "launches": profiling.launches,
    "step": tables.step_table,
    "busy": profiling.busy,
    "regularizer": tables.regularizer_table,
    "deepfool": tables.deepfool_table,
    "loader": tables.loader_table,
    "rho2_speed": tables.rho2_speed,
    # Several ranks, with --multi.
    "equal_weights": ranks.equal_weights,
    "killed_rank": ranks.killed_rank,
}
# A decoder that meets damaged data may end its process.
IN_NEW_PROCESS_ON_GPU = {"damaged_images"}
HANG_MINUTES = 3  # after the time of --minutes a process that hangs is ended
REMEDY = "give another --output"


def parser() -> arguments.Parser:
    """The command line."""
    top = arguments.Parser(description=__doc__)
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    top.add_argument(
        "--output", type=Path, default=Path("gpu_check"), help="folder of results (%(default)s)"
    )
    top.add_argument(
        "--size",
        choices=("auto", "full", "small"),
        default="auto",
        help="full: ResNet-18, ViT-B/16 and SqueezeNet at 224 pixels, up to 256 images; small: "
        "images of 32 pixels, small nets and batches; auto: full on a GPU (%(default)s)",
    )
    top.add_argument(
        "--minutes",
        type=arguments.Number(float, Range(minimum=0)),
        default=10.0,
        help="checks that have not started this many minutes after the start are skipped; one "
        f"that still runs {HANG_MINUTES} minutes after that ends the program (%(default)s)",
    )
    top.add_argument(
        "--multi", action="store_true", help="also check ranks: one for each GPU; on a CPU two"
    )
    top.add_argument(
        "--only", nargs="+", choices=CHECKS, metavar="NAME", help="run these checks (default: all)"
    )
    top.add_argument("--list", action="store_true", help="list the checks and exit")
    return top


def list_checks() -> None:
    """Print each check's name and what it does."""
    for name, check in CHECKS.items():
        print(f"{name:16} {(check.__doc__ or '').splitlines()[0]}")


def run_all(names: Sequence[str], setup: Setup, output: Path) -> list[Outcome]:
    """Run the checks, and write the results after each of them."""
    begin, about = time.monotonic(), page.describe_machine(setup)
    outcomes: list[Outcome] = []
    for name in names:
        _say(begin, f"{name} ...")
        # If the process ends during the check, the files say which one it was.
        running = Outcome(name, "running")
        page.write_results(output, about, [*outcomes, running], time.monotonic() - begin)
        in_new_process = setup.on_gpu and name in IN_NEW_PROCESS_ON_GPU
        run = run_in_new_process if in_new_process else run_check
        outcome = run(name, CHECKS[name], setup)
        outcomes.append(outcome)
        _say(begin, f"{name} {outcome.status} ({outcome.seconds:.1f} s) {outcome.reason}".rstrip())
        page.write_results(output, about, outcomes, time.monotonic() - begin)
    return outcomes


def _say(begin: float, message: str) -> None:
    print(f"[{time.monotonic() - begin:6.1f} s] {message}", flush=True)


@contextmanager
def _end_if_it_hangs(seconds: float) -> Iterator[None]:
    """Print where all threads are and end the process with exit status 1, if the block takes
    longer: libraries that wait for a GPU cannot be interrupted."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks that the options name; returns the exit status."""
    options = parser().parse_args(argv)
    if options.list:
        list_checks()
        return 0
    with (
        exit_on_user_error(),
        tempfile.TemporaryDirectory() as folder,
        _end_if_it_hangs(60 * (options.minutes + HANG_MINUTES)),
    ):
        outcomes = run_all(
            [name for name in CHECKS if not options.only or name in options.only],
            set_up(options, Path(folder)),
            options.output,
        )
    print(f"{page.summary(outcomes)}: {options.output / page.PAGE_NAME}")
    statuses = {outcome.status for outcome in outcomes}
    return int("failed" in statuses or "passed" not in statuses)


def set_up(options: argparse.Namespace, folder: Path) -> Setup:
    """What the checks run on.

    Args:
        options: the command line.
        folder: for generated data and runs.

    Raises:
        UserError: there is no GPU, or the output cannot be written.
    """
    deadline = time.monotonic() + 60 * options.minutes
    check_writable(options.output / page.JSON_NAME, REMEDY)
    device = common.set_up_device(options)
    options.output.mkdir(parents=True, exist_ok=True)
    is_full = options.device == "cuda" if options.size == "auto" else options.size == "full"
    return Setup(device, FULL if is_full else SMALL, folder, deadline, options.multi)


if __name__ == "__main__":
    sys.exit(main())
