"""tools/chaos.py: the plan of a campaign, and the command that it disturbs."""

import collections
from pathlib import Path
from typing import Any

import pytest

from fault_campaign import plan, table
from fault_campaign.commands import Command
from fault_campaign.kind import PHASES
from fault_campaign.kinds import KINDS
from fault_campaign.outcome import Outcome, repeated
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault
from pipeline.errors import UserError
from tests.helpers.in_process import call

TRAINING = ("torchrun", "--nproc_per_node=2", "pipeline/finetune.py", "--output", "OUT")


def test_the_same_seed_gives_the_same_plan() -> None:
    kinds = list(KINDS.values())
    faults = plan.plan(50, 7, kinds)
    assert plan.plan(50, 7, kinds) == faults
    assert plan.plan(20, 7, kinds) == faults[:20], "a longer campaign begins like a shorter one"
    assert plan.plan(50, 8, kinds) != faults
    assert [fault.number for fault in faults] == list(range(1, 51))


def test_kinds_and_phases_are_equally_frequent() -> None:
    kinds = [KINDS["kill_rank"], KINDS["disk_full"], KINDS["torn_checkpoint"]]
    faults = plan.plan(18, 0, kinds)
    assert set(collections.Counter(fault.kind for fault in faults).values()) == {6}
    phases = collections.Counter((fault.kind, fault.phase) for fault in faults)
    assert phases == {
        **{("kill_rank", phase): 2 for phase in PHASES},
        **{("disk_full", phase): 3 for phase in ("start-up", "work")},
        ("torn_checkpoint", "work"): 6,
    }
    assert {phase for kind in KINDS.values() for phase in kind.phases} <= set(PHASES)


def test_every_rank_is_chosen() -> None:
    faults = plan.plan(60, 0, [KINDS["kill_rank"]])
    assert {fault.rank_of(4) for fault in faults} == {0, 1, 2, 3}
    assert {fault.rank_of(1) for fault in faults} == {0}
    assert all(0 <= fault.fraction < 1 for fault in faults)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("a/finetune.py", "--output", "x"), ["a/finetune.py", "--output", "new"]),
        (("a/evaluate.py", "--output=x"), ["a/evaluate.py", "--output=new"]),
        (("sh", "finetune.sh", "{output}/a"), ["sh", "finetune.sh", "new/a"]),
    ],
)
def test_the_output_folder_is_replaced(argv: tuple[str, ...], expected: list[str]) -> None:
    timeout = ["--runtime.collective_timeout", "9"]
    assert Command(argv, 9).with_output(Path("new")) == [*expected, *timeout]
    own = "--runtime.collective_timeout=5"
    assert Command((*argv, own), 9).with_output(Path("new")) == [*expected, own]


@pytest.mark.parametrize(
    ("argv", "trains", "num_ranks", "under_torchrun"),
    [
        (TRAINING, True, 2, True),
        (("python", "-m", "torch.distributed.run", "--nproc-per-node", "4", "pipeline/evaluate.py",
          "--output", "x"), False, 4, True),
        (("python", "pipeline/finetune.py", "--output", "x"), True, 1, False),
        (("python", "launchers/finetune.py", "--wait", "--tasks-per-node", "2", "--", "--output",
          "x"), True, 2, False),
    ],
)  # fmt: skip
def test_what_the_command_runs(
    argv: tuple[str, ...], trains: bool, num_ranks: int, under_torchrun: bool
) -> None:
    command = Command(argv, 20)
    assert command.trains == trains
    assert command.num_ranks == num_ranks
    assert command.under_torchrun == under_torchrun
    assert bool(KINDS["kill_torchrun"].missing(command)) == (not under_torchrun)
    assert bool(KINDS["hang"].missing(command)) == (num_ranks == 1)
    assert bool(KINDS["torn_checkpoint"].missing(command)) == (not trains)
    assert KINDS["kill_rank"].missing(command) == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "no command: write it after --"),
        (("python", "pipeline/finetune.py"), "names no output folder"),
        (("python", "train.py", "--output", "x"), "must contain finetune or evaluate"),
        (("sbatch", "slurm/finetune.sbatch", "--output", "x"), "does not wait for it; add --wait"),
        (("python", "launchers/finetune.py", "--", "--output", "x"), "add --wait"),
    ],
)
def test_a_command_that_cannot_be_tested(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Command(argv, 20)


def outcome(number: int, seconds: float, **values: Any) -> Outcome:
    kind = ("kill_rank", "hang")[number % 2]
    return Outcome(Fault(number, kind, "work", 0.5, 0.5, 0.5), seconds_lost=seconds, **values)


def test_the_table_counts_what_was_lost() -> None:
    outcomes = [
        outcome(1, 10.0, repeated=3, start_seconds=2.0),
        outcome(2, 2.0),
        outcome(3, 30.0, differences=["weights.pth differs"]),
        outcome(4, 4.0, problems=["file left over: x"]),
    ]
    lines = table.by_kind(outcomes)
    assert lines == [
        ["SIGKILL to one rank", "2", "1", "2", "3.0", "4.0", "0"],
        ["SIGSTOP to one rank for good", "2", "1", "1", "20.0", "30.0", "3"],
        ["all", "4", "2", "3", "7.0", "30.0", "3"],
    ]
    numbers = table.summary(outcomes, Pace(5.0, 20.0, 100, 1000))
    assert numbers["seconds_lost_median"] == 7.0
    assert numbers["median_in_starts"] == pytest.approx(2.9)  # of 5, 0.4, 6 and 0.8
    assert numbers["results_lost"] == 2
    text = table.page(outcomes, Pace(5.0, 20.0, 100, 1000), "python tools/chaos.py", {"a": "root"})
    assert "weights.pth differs" in text
    assert "- a: root" in text


@pytest.mark.parametrize(("share", "expected"), [(0.5, 10), (0.95, 19), (1.0, 20), (0.01, 1)])
def test_quantiles(share: float, expected: int) -> None:
    assert table.quantile(range(20, 0, -1), share) == expected


def test_a_dry_run_lists_the_plan(tmp_path: Path) -> None:
    options = ("--faults", 5, "--output", tmp_path / "c", "--kinds", "hang", "kill_rank")
    ended = call("tools/chaos.py", *options, "--dry_run", "--", *TRAINING)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("| kill_rank |") + ended.stdout.count("| hang |") == 5
    assert not (tmp_path / "c").exists()
    ended = call("tools/chaos.py", *options, "--dry_run", "--", "python", *TRAINING[2:])
    assert "skipped: hang: the command has one rank" in ended.stdout


def test_kinds_that_are_impossible(tmp_path: Path) -> None:
    ended = call("tools/chaos.py", "--kinds", "hang", "--", "python", *TRAINING[2:])
    assert ended.code == 2
    assert (
        "error: --kinds: none of them is possible here (hang: the command has one" in ended.stderr
    )


@pytest.mark.parametrize(
    ("argv", "submits"),
    [
        (TRAINING, False),
        (("sbatch", "--wait", "slurm/finetune.sbatch", "--output", "x"), True),
        (("python", "launchers/finetune.py", "--wait", "--", "--output", "x"), True),
        (
            ("python", "launchers/finetune.py", "--cluster", "local", "--wait", "--output", "x"),
            False,
        ),
    ],
)
def test_faults_of_jobs_are_for_commands_that_submit_some(
    argv: tuple[str, ...], submits: bool
) -> None:
    command = Command(argv, 20)
    assert command.submits == submits
    drawn = {kind.name for kind in KINDS.values() if kind.by_default(command)}
    assert ("requeue" in drawn, "kill_rank" in drawn) == (submits, not submits)
    assert "preemption" not in drawn, "it also disturbs the jobs of others"
    if not submits:
        assert KINDS["requeue"].missing(command) == "the command submits no job"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("resuming from step-10.pt, step 10, in x", 5),
        ("resuming from a.pt, step 4, in x\nrequeued\nresuming from b.pt, step 12, in x", 3),
        ("a new run, in x", 15),
        ("30 of 100 images to evaluate", 10),
        ("20 of 50 images to evaluate", 0),
    ],
    ids=["steps", "a requeued job", "from the start", "images", "a shard"],
)
def test_what_was_repeated(output: str, expected: int) -> None:
    assert repeated(output, step_before=15, rows_before=80, num_rows=100) == expected
