"""tools/chaos.py: a small campaign of real runs, and its verdict on a program that loses rows."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import lock, machine
from tests.helpers.in_process import CommandResult, in_process
from tests.helpers.runs import ROOT

# 18 steps, with a checkpoint every two; evaluations at 6, 12 and 18.
FINETUNE = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"),
    *(str(ROOT / "pipeline" / "finetune.py"), "--output", "OUT"),
    *("--model.name", "tests.helpers.nets:dropout_mlp", "--train.batch_size", "1000"),
    *("--train.pretrain_epochs", "1", "--train.epochs", "2", "--log.every_steps", "1"),
    *("--checkpoint.every_steps", "2", "--log.panel_images", "0"),
    *("--evaluation.num_images", "100", "--evaluation.every_epochs", "1"),
)
# A program that does what a run does: it writes rows, and resumes after those that are complete.
PROGRAM = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
path = folder / "metrics.jsonl"
(folder / "progress.json").write_text('{"doing": "training"}')
for abandoned in folder.glob(".*.tmp-*"):
    abandoned.unlink()
rows = path.read_text().splitlines(keepends=True) if path.exists() else []
rows = [row for row in rows if row.endswith("\\n")]
if "--forgetful" not in sys.argv:
    path.write_text("".join(rows))
partial = folder / ".weights.pth.tmp-1-a"
first = 1 if "--forgetful" in sys.argv else len(rows) + 1
with path.open("a") as file:
    for step in range(first, 31):
        partial.touch()
        time.sleep(0.02 if step < 20 else 0.1)
        partial.unlink()
        print(json.dumps({"step": step, "train/loss": 1 / step}), file=file, flush=True)
(folder / "summary.json").write_text("{}")
"""
# Before PROGRAM: the first start in a folder with this name in its path hangs.
HANG = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
if "%s" in str(folder) and not (folder.parent / "hung").exists():
    (folder.parent / "hung").touch()
    time.sleep(20)
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "finetune_program.py"
    path.write_text(PROGRAM)
    return (sys.executable, str(path), "--output", "OUT")


def chaos(folder: Path, *options: object) -> CommandResult:
    done = in_process("tools/chaos.py", "--output", folder, *options)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def outcomes(folder: Path) -> list[dict]:
    return json.loads((folder / "faults.json").read_text())["outcomes"]


def processes_that_name(folder: Path) -> list[str]:
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in line]


def test_a_program_that_loses_nothing(tmp_path: Path, program: tuple[str, ...]) -> None:
    options = ("--faults", 3, "--kinds", "kill_rank", "abort", "segmentation_fault", "--", *program)
    done = chaos(tmp_path / "c", *options)
    assert done.code == 0, done
    assert "3 faults of 3 kinds, 0 with results lost, 3 with equal bits" in done.stdout
    codes = {
        outcome["fault"]["kind"]: outcome["exit_codes"] for outcome in outcomes(tmp_path / "c")
    }
    assert codes == {"kill_rank": [-9, 0], "abort": [-6, 0], "segmentation_fault": [-11, 0]}
    assert not list((tmp_path / "c").glob("faults/*/run")), "runs that lost nothing are deleted"
    again = chaos(tmp_path / "c", *options)
    assert again.code == 0
    assert "min left" not in again.stdout, "no fault is repeated"
    joined = in_process("tools/chaos.py", "--join", tmp_path / "c", tmp_path / "c").stdout
    assert re.search(r"\| SIGABRT to one rank \| 1, 0 lost, \S+ s \| 1, 0 lost, \S+ s \|", joined)
    assert re.search(r"\| all \| 3, 0 lost", joined)
    missing = in_process("tools/chaos.py", "--join", tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == f"error: {tmp_path} has no faults.json of a campaign that is done\n"


def test_several_faults_in_one_run(tmp_path: Path, program: tuple[str, ...]) -> None:
    """The run continues after a pause; the others need a new start."""
    kinds = ("--kinds", "kill_rank", "pause", "abort", "--seed", 2)
    done = chaos(tmp_path / "c", "--faults", 3, "--faults-per-run", 3, *kinds, "--", *program)
    assert done.code == 0, done
    assert "3 faults of 3 kinds, 0 with results lost, 3 with equal bits" in done.stdout
    assert [path.name for path in (tmp_path / "c/faults").iterdir()] == ["001-003"]
    moments = []
    for outcome in outcomes(tmp_path / "c"):
        codes = {"kill_rank": [-9], "pause": [], "abort": [-6]}[outcome["fault"]["kind"]]
        is_last = outcome["fault"]["number"] == 3
        assert outcome["exit_codes"] == codes + [0] * is_last
        moments.append(int(outcome["during"].split("step ")[1].split(",")[0]))
    assert moments == sorted(moments)
    assert moments[1] >= 10, "the rows are divided among the faults"
    assert moments[2] >= 20


def test_a_fault_after_the_end_of_a_run(tmp_path: Path, program: tuple[str, ...]) -> None:
    """The run has no rows left for the second fault: that is reported."""
    # Rows take so long that a busy machine sees the first one before the end.
    short = PROGRAM.replace("range(first, 31)", "range(first, 3)").replace("0.02 if", "0.4 if")
    Path(program[1]).write_text(short)
    kinds = ("--kinds", "pause", "kill_rank", "--seed", 1)
    done = chaos(tmp_path / "c", "--faults", 2, "--faults-per-run", 2, *kinds, "--", *program)
    assert done.code == 1, done
    first, second = outcomes(tmp_path / "c")
    assert first["done"], first
    assert second["problems"][0] == "the fault did not happen: the command ended before"


def test_a_program_that_loses_rows(tmp_path: Path, program: tuple[str, ...]) -> None:
    options = ("--faults", 1, "--seed", 3, "--kinds", "kill_all", "--", *program, "--forgetful")
    done = chaos(tmp_path / "c", *options)
    assert done.code == 1, done
    assert "repeated" in "".join(outcomes(tmp_path / "c")[0]["differences"])
    assert list((tmp_path / "c").glob("faults/*/run")), "it is kept, to be looked at"


def test_a_program_that_fails_undisturbed(tmp_path: Path, program: tuple[str, ...]) -> None:
    Path(program[1]).write_text("print('error: no data'); raise SystemExit(2)")
    done = chaos(tmp_path / "c", "--kinds", "kill_all", "--", *program)
    assert done.code == 2
    assert "error: the undisturbed run failed with exit code 2: error: no data" in done.stderr


def test_another_command_in_the_folder_of_a_campaign(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "c", ("--faults", 1, "--kinds", "kill_rank")
    assert chaos(folder, *options, "--", *program).code == 0
    table = (folder / "faults.json").read_bytes()
    for arguments in (("--", *program, "--seed", 1), ("--collective-timeout", 9, "--", *program)):
        done = chaos(folder, *options, *arguments)
        assert done.code == 2, done
        assert done.stderr == (
            f"error: the campaign in {folder} is of another command or --collective-timeout; "
            "give another --output\n"
        )
        assert (folder / "faults.json").read_bytes() == table
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    done = chaos(folder, *options, "--", *program)
    assert done.code == 0, done
    assert done.stderr.startswith(f"warning: the campaign in {folder} was begun at commit ")
    assert "and this is abc: " in done.stderr


@pytest.mark.parametrize("part", ["undisturbed", "001-torn_checkpoint"])
def test_a_start_that_hangs(tmp_path: Path, program: tuple[str, ...], part: str) -> None:
    """--time-limit applies before the fault, too."""
    Path(program[1]).write_text(HANG % part + PROGRAM)
    options = ("--faults", 1, "--kinds", "torn_checkpoint", "--time-limit", 3)
    begin = time.monotonic()
    done = chaos(tmp_path / "c", *options, "--", *program)
    assert time.monotonic() - begin < 15
    if part == "undisturbed":
        assert done.code == 2, done
        assert "the undisturbed run did not end within --time-limit, 3 s: " in done.stderr
        return
    assert done.code == 1, done
    (outcome,) = outcomes(tmp_path / "c")
    assert outcome["exit_codes"] == [-9, 0]
    assert outcome["problems"] == [
        "the fault did not happen: the command did not come so far in time",
        "start 1 did not end in time",
    ]


def test_an_interrupted_campaign_leaves_no_process_and_resumes(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    folder = tmp_path / "c"
    options = ("--faults", 3, "--kinds", "kill_rank", "--", *program)

    def interrupt_second_fault() -> None:
        while not list(folder.glob("faults/002-*/run/metrics.jsonl")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_second_fault, daemon=True)
    thread.start()
    ended = chaos(folder, *options)
    thread.join(timeout=10)
    assert ended.code == 75, ended
    assert "interrupted; rerun the same command to resume" in ended.stderr
    assert processes_that_name(tmp_path) == []
    assert not (folder / "faults.json").exists()
    first = (folder / "faults/001-kill_rank/outcomes.json").read_bytes()
    assert chaos(folder, *options).code == 0
    assert (folder / "faults/001-kill_rank/outcomes.json").read_bytes() == first
    assert len(outcomes(folder)) == 3


def test_two_campaigns_in_one_folder(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one would end the processes of the first one."""
    monkeypatch.setattr(lock, "_TIMEOUT", 0)
    with (tmp_path / ".lock").open("w") as file:
        assert lock.try_lock(file)
        ended = chaos(tmp_path, "--kinds", "kill_all", "--", *program)
    assert ended.code == 2
    assert f"error: output: {tmp_path} is being written by" in ended.stderr


@pytest.mark.slow
def test_a_small_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("kill_rank", "clock_jump", "kill_torchrun")
    kinds += ("exception", "disk_full", "torn_checkpoint")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = chaos(tmp_path / "c", "--faults", 6, "--kinds", *kinds, "--", *FINETUNE)
    assert done.code == 0, done
    assert "6 faults of 6 kinds, 0 with results lost, 6 with equal bits" in done.stdout
    assert processes_that_name(tmp_path) == []
