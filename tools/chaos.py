r"""Kill, stop and damage runs on purpose, and check that nothing is lost.

    python tools/chaos.py --faults 20 --seed 0 --output faults -- \
        torchrun --standalone --nproc_per_node=2 pipeline/finetune.py --output OUT \
        --train.pretrain_epochs 2 --train.epochs 2 --checkpoint.every_steps 20 --log.every_steps 1
    python tools/chaos.py --output faults --dry-run -- torchrun ... # list the planned faults
    python tools/chaos.py --list                                    # list the kinds of faults
    python tools/chaos.py --join faults other                       # one table of two campaigns

The command after -- is a fine-tuning or an evaluation: an entry point, a launcher that waits, or
sbatch --wait. It runs undisturbed once. Then, for each fault: it runs in an empty folder, the fault
happens at a moment drawn from the seed, and the same command is repeated until it exits with 0.
With --faults-per-run several faults happen in one run, one after another.
The results are compared with the undisturbed run's bit by bit. Files, processes and ports that are
left over are reported. For each run the tool replaces the value of --output (or {output} anywhere
in the command), and sets runtime.collective_timeout unless the command does.

OUTPUT/faults.md, faults.csv and faults.json contain the results. The same command resumes a
campaign that was interrupted. Exit status: 0 if nothing was lost or left over; 1 otherwise; 2 after
a mistake in the options; 75 after Ctrl-C. The tool ends only processes and jobs that it has
started. The kinds preemption and node_down also disturb other jobs on the same nodes, and come only
if --kinds names them.
"""

import argparse
import resource
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fault_campaign import table
from fault_campaign.campaign import Campaign, Settings
from fault_campaign.commands import Command
from fault_campaign.kind import Kind
from fault_campaign.kinds import KINDS
from fault_campaign.outcome import Outcome
from fault_campaign.plan import Fault, plan
from launchers.options import split
from pipeline.config import arguments
from pipeline.config.checks import Range
from pipeline.errors import STOPPED_EXIT_CODE, UserError, exit_on_user_error
from pipeline.runtime import lock
from pipeline.runtime.files import check_writable
from pipeline.runtime.text_tables import markdown_table


def parser() -> arguments.Parser:
    """The command line up to --."""
    top = arguments.Parser(description=__doc__)
    top.add_argument(
        "--faults", type=arguments.POSITIVE, default=20, help="number of faults (%(default)s)"
    )
    top.add_argument(
        "--seed",
        type=arguments.SEED,
        default=0,
        help="moments, ranks and sizes are drawn from it: the same seed gives the same plan "
        "(%(default)s)",
    )
    top.add_argument(
        "--output", type=Path, default=Path("faults"), help="folder of the campaign (%(default)s)"
    )
    top.add_argument(
        "--faults-per-run",
        type=arguments.POSITIVE,
        default=1,
        metavar="N",
        help="faults that come in one run, one after another, before it is compared (%(default)s)",
    )
    top.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help="only these kinds, as --list shows them (default: for a command that submits "
        "jobs those of its own job, for others those of processes on this machine; in both cases "
        "those that the command and the machine allow)",
    )
    top.add_argument(
        "--collective-timeout",
        type=arguments.POSITIVE,
        default=20,
        help="seconds for runtime.collective_timeout unless the command sets it; longer than any "
        "wait of a rank for another in the undisturbed run (%(default)s)",
    )
    top.add_argument(
        "--max-starts",
        type=arguments.Number(int, Range(minimum=2)),
        default=4,
        help="starts of the command for each fault, with the disturbed one (%(default)s)",
    )
    top.add_argument(
        "--time-limit",
        type=arguments.POSITIVE,
        default=1800,
        help="seconds from each start of the command, after which it is killed and counts as "
        "lost (%(default)s)",
    )
    top.add_argument("--keep", action="store_true", help="keep the runs that lost nothing")
    top.add_argument("--dry-run", action="store_true", help="list the planned faults and exit")
    top.add_argument("--list", action="store_true", help="list the kinds of faults and exit")
    top.add_argument(
        "--join",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="print one table of campaigns that are done, the values of their --output, and exit",
    )
    return top


def choose(names: Sequence[str] | None, command: Command) -> tuple[list[Kind], dict[str, str]]:
    """The kinds to draw from, and why others are skipped.

    Raises:
        UserError: none of them is possible.
    """
    wanted = [kind for kind in KINDS.values() if kind.by_default(command)]
    if names:
        wanted = [KINDS[name] for name in names]
    skipped = {kind.name: reason for kind in wanted if (reason := kind.missing(command))}
    kinds = [kind for kind in wanted if kind.name not in skipped]
    if not kinds:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"--kinds: none of them is possible here ({reasons})")
    return kinds, skipped


def show_plan(faults: Sequence[Fault], skipped: dict[str, str]) -> None:
    """Print the planned faults."""
    lines = [
        [str(f.number), f.kind, f.phase, f"{f.fraction:.0%}", f"{f.rank_fraction:.2f}"]
        for f in faults
    ]
    print(markdown_table(("number", "kind", "phase", "after", "rank (share)"), lines, 3), end="")
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")


class FaultReporter:
    """Prints a line after each fault, with the time left."""

    def __init__(self) -> None:
        self._begin, self._num_done = time.monotonic(), 0

    def report(self, outcome: Outcome, num_left: int) -> None:
        """Print what came of a fault."""
        self._num_done += 1
        seconds = (time.monotonic() - self._begin) / self._num_done * num_left
        print(f"{table.describe(outcome)}; about {seconds / 60:.0f} min left", flush=True)


def run(campaign: Campaign, faults: Sequence[Fault], skipped: dict[str, str]) -> int:
    """Run the campaign and write its table; returns the exit status."""
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}", flush=True)
    print("running the command undisturbed", flush=True)
    pace = campaign.undisturbed()
    print(
        f"it took {pace.seconds:.1f} s, {pace.start_seconds:.1f} s of them until its first results;"
        f" {len(faults)} faults follow",
        flush=True,
    )
    outcomes = campaign.run(faults, pace, FaultReporter().report)
    own_command = shlex.join(["python", "tools/chaos.py", *sys.argv[1:]])
    path = table.write(campaign.settings.folder, outcomes, pace, own_command, skipped)
    print(path.read_text())
    print(path)
    return int(any(outcome.lost for outcome in outcomes))


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, run, compare; returns the exit status."""
    own_argv, command_argv = split(list(sys.argv[1:] if argv is None else argv))
    args = parser().parse_args(own_argv)
    if args.list:
        print(markdown_table(("kind", "fault"), [[k.name, k.text] for k in KINDS.values()], 2))
        return 0
    with exit_on_user_error():
        if args.join:
            print(table.join(args.join), end="")
            return 0
        command = Command(tuple(command_argv), args.collective_timeout)
        kinds, skipped = choose(args.kinds, command)
        faults = plan(args.faults, args.seed, kinds)
        if args.dry_run:
            show_plan(faults, skipped)
            return 0
        check_writable(args.output / table.PAGE, "give another --output")
        settings = settings_of(args)
        lock.lock_folder(settings.folder)  # a campaign ends the processes that it left before
        return run_unless_interrupted(Campaign(command, settings), faults, skipped)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the campaign; its folder is created."""
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.output.absolute()
    return Settings(folder, args.max_starts, args.time_limit, args.keep, args.faults_per_run)


def run_unless_interrupted(
    campaign: Campaign, faults: Sequence[Fault], skipped: dict[str, str]
) -> int:
    """Run the campaign; after a signal end its processes. Returns the exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core files of segmentation faults
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A process that the shell started in the background ignores SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(campaign, faults, skipped)
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        return STOPPED_EXIT_CODE
    finally:
        campaign.end()


if __name__ == "__main__":
    sys.exit(main())
