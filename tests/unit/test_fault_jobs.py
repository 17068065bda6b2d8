"""tools/chaos.py: which jobs and nodes of SLURM it may touch, by recorded answers of SLURM.

tests/slurm/test_slurm_faults.py causes the faults on a real SLURM.
"""

import json
import os
from pathlib import Path

import psutil
import pytest
import submitit

from fault_campaign import job_faults, slurm
from fault_campaign.kind import Target
from fault_campaign.refused import FaultRefusedError
from launchers import follow

JOB = (
    "JobId={id} JobName=run UserId=root(0) Priority=1 JobState={state} Restarts=0 NodeList=n[1-2] "
)
JOB += "Command={folder}/jobs/7_submission.sh StdOut={folder}/jobs/7_0_log.out"
# Answers by the words of the command line that are asked for; it logs all commands.
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >> "{folder}/commands"
case "$*" in
*config*) echo "PreemptType = preempt/partition_prio";;
*partition*) cat "{folder}/partitions";;
*hostnames*) echo n1; echo n2;;
*"show node"*) cat "{folder}/node";;
*"show job"*) cat "{folder}/jobs" || exit 1;;
esac
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what SLURM answers."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("scontrol", "scancel", "sbatch", "squeue"):
        (programs / name).write_text(PROGRAM.format(folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "_ANSWER_SECONDS", 0.0)
    return tmp_path


def commands(answers: Path, *names: str) -> list[str]:
    path = answers / "commands"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.split()[0] in names or not names]


def write_submission(folder: Path, jobs: list[str], cluster: str = "slurm") -> None:
    values = {"kind": "finetune", "cluster": cluster, "jobs": jobs, "logs": []}
    (folder / "submission.json").write_text(json.dumps(values))


def write_jobs(answers: Path, *records: str, folder: Path | None = None) -> None:
    texts = [record.replace("{folder}", str(folder or answers)) for record in records]
    (answers / "jobs").write_text("\n".join(texts) + "\n")


def target(folder: Path, job: str = "7") -> Target:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    return Target(psutil.Process(), [], 0, run, 0.9, 1000, job, ("sbatch",))


def test_processes_of_a_local_launcher_are_no_jobs(answers: Path) -> None:
    """A job of somebody else may have the same number."""
    write_submission(answers, [str(os.getpid())], cluster="local")
    assert slurm.jobs_of(answers, "") == []
    write_submission(answers, ["7", "7_1", ""])
    assert slurm.jobs_of(answers, "Submitted batch job 12\n") == ["12", "7", "7_1"]
    (answers / "submission.json").write_text("[]")
    assert slurm.jobs_of(answers, "") == []


@pytest.mark.parametrize("job", ["", "all", "7; true"])
def test_what_is_no_number_is_not_asked_for(answers: Path, job: str) -> None:
    """scontrol takes an empty number for all jobs."""
    write_jobs(answers, JOB.format(id=7, state="RUNNING", folder="{folder}"))
    assert slurm.records_of(job) == []
    assert commands(answers) == []


def test_only_own_jobs_are_cancelled(answers: Path) -> None:
    records = [
        JOB.format(id=number, state=state, folder="{folder}")
        for number, state in ((7, "RUNNING"), (8, "COMPLETED"), (9, "COMPLETING"))
    ]
    write_jobs(answers, *records)
    assert slurm.cancel_all(["7"], answers / "other") == []
    assert commands(answers, "scancel") == []
    assert slurm.cancel_all(["7"], answers) == ["7"]
    assert commands(answers, "scancel") == ["scancel 7"]


def test_tasks_of_an_array_are_jobs_of_their_own(answers: Path) -> None:
    task = "JobId={id} ArrayJobId=7 ArrayTaskId={task} JobState={state} StdOut={folder}/log"
    write_jobs(
        answers,
        task.format(id=7, task=0, state="RUNNING", folder="{folder}"),
        task.format(id=8, task=1, state="COMPLETED", folder="{folder}"),
        task.format(id=9, task="2-5", state="PENDING", folder="{folder}"),
    )
    assert slurm.running(["7"]) == ["7_0"]
    assert slurm.cancel_all(["7"], answers) == ["7_0", "9"]


def test_a_controller_that_does_not_answer(answers: Path) -> None:
    """It is no job that has ended."""
    with pytest.raises(FaultRefusedError):
        slurm.records_of("7")
    with pytest.raises(FaultRefusedError):
        job_faults.requeue(target(answers))


@pytest.mark.parametrize("state", ["IDLE+DRAIN", "DOWN*", "MIXED+MAINT"])
def test_a_node_in_a_state_that_others_have_set(answers: Path, state: str) -> None:
    write_jobs(answers, JOB.format(id=7, state="RUNNING", folder="{folder}"))
    (answers / "node").write_text(f"NodeName=n2 State={state} ThreadsPerCore=1")
    with pytest.raises(FaultRefusedError, match="node n2 is in the state"):
        job_faults.lose_node(target(answers))
    assert not [line for line in commands(answers) if "update" in line]


@pytest.mark.parametrize(("after", "updates"), [("DOWN*", ["down", "resume"]), ("IDLE", ["down"])])
def test_a_node_that_is_lost_comes_back(
    answers: Path, after: str, updates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM refuses to resume a node that has come back by itself."""
    write_jobs(answers, JOB.format(id=7, state="RUNNING", folder="{folder}"))
    (answers / "node").write_text("NodeName=n2 State=ALLOCATED ThreadsPerCore=1")
    states = [False]

    def interrupted(job: str, restarts: str) -> bool:
        states.append((answers / job_faults.NODE_DOWN).read_text() == "n2")
        (answers / "node").write_text(f"NodeName=n2 State={after} ThreadsPerCore=1")
        return True

    monkeypatch.setattr(slurm, "wait_for_interruption", interrupted)
    assert job_faults.lose_node(target(answers)) == "node n2 down"
    assert states[-1], "a campaign that is killed meanwhile brings it back later"
    lines = [line for line in commands(answers) if "update" in line]
    assert [line.split("state=")[1].split()[0] for line in lines] == updates
    assert not (answers / job_faults.NODE_DOWN).exists()


def test_jobs_that_slurm_holds_are_released(answers: Path) -> None:
    task = "JobId={id} ArrayJobId=7 ArrayTaskId={task} JobState={state} Reason={reason}"
    held = "launch_failed_requeued_held"
    write_jobs(
        answers,
        task.format(id=7, task=0, state="RUNNING", reason="None"),
        task.format(id=8, task=1, state="PENDING", reason=held),
    )
    slurm.wait_for_restart("7_0")
    assert commands(answers, "scontrol")[1] == "scontrol release 7_1"


def test_a_partition_whose_jobs_preempt(answers: Path) -> None:
    lines = (
        "PartitionName=main Default=YES PriorityTier=1 State=UP",
        "PartitionName=closed Default=NO PriorityTier=5 State=DOWN",
        "PartitionName=top Default=NO PriorityTier=20 State=UP",
        "PartitionName=urgent Default=NO PriorityTier=10 State=UP",
    )
    (answers / "partitions").write_text("\n".join(lines))
    assert slurm.urgent_partition(("sbatch", "x")) == "urgent"
    assert slurm.urgent_partition(("sbatch", "--partition", "urgent", "x")) == "top"
    assert slurm.urgent_partition(("sbatch", "--partition=top", "x")) == ""
    assert slurm.urgent_partition(("sbatch", "-p", "nowhere", "x")) == ""


def test_the_queue_is_asked_again_if_squeue_fails(answers: Path) -> None:
    job = submitit.SlurmJob(answers, "7")

    def answer(text: str) -> bool:
        (answers / "bin" / "squeue").write_text(f"#!/bin/sh\n{text}\n")
        return follow._is_in_queue(job)

    assert answer("echo PENDING")
    assert not answer("exit 0")
    assert answer("echo 'Unable to contact slurm controller' >&2; exit 1")
    assert not answer("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
